"""Train a small contrastive model (CLIP) on the images and captions of stage 2, to choose among its samples.

accelerate launch tools/train_reranker.py --config configs/reranker/shapes.yaml [--section.field value ...]
"""

import sys
from functools import partial

from parti.cli import train

main = partial(train.main, choices=("reranker",), about=__doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
