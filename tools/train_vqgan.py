"""Train an image tokenizer (stage 1).

accelerate launch tools/train_vqgan.py --config configs/vqgan/shapes.yaml [--section.field value ...]
"""

import sys
from functools import partial

from parti.cli import train

main = partial(train.main, choices=("image_tokenizer",), about=__doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
