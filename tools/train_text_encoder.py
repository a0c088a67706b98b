"""Warm up the text encoder of stage 2: masked tokens, and the contrast of captions and images.

accelerate launch tools/train_text_encoder.py --config configs/text_encoder/shapes.yaml [--section.field value ...]
"""

import sys
from functools import partial

from parti.cli import train

main = partial(train.main, choices=("text_encoder",), about=__doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
