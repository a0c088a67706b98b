"""Train a text-to-image transformer (stage 2) on the codes of a trained image tokenizer.

accelerate launch tools/train_parti.py --config configs/parti/shapes.yaml [--section.field value ...]
"""

import sys

from parti.train import TrainPartiConfig, train
from vqgan.command_line import run_training


def main(argv: list[str]) -> int:
    return run_training(argv, TrainPartiConfig, train, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
