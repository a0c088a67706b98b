"""Train a small contrastive model (CLIP) on the images and captions of stage 2, to choose among its samples.

accelerate launch tools/train_reranker.py --config configs/reranker/shapes.yaml [--section.field value ...]
"""

import sys

from parti.reranker.train_reranker import TrainRerankerConfig, train
from vqgan.cli.command_line import run_training
from vqgan.cli.console import command


@command
def main(argv: list[str]) -> int:
    return run_training(argv, TrainRerankerConfig, train, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
