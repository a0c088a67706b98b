"""Train an image tokenizer (stage 1).

accelerate launch tools/train_vqgan.py --config configs/vqgan/shapes.yaml [--section.field value ...]
"""

import sys

from vqgan.cli.command_line import run_training
from vqgan.cli.console import command
from vqgan.train_tokenizer import TrainVQGANConfig, train


@command
def main(argv: list[str]) -> int:
    return run_training(argv, TrainVQGANConfig, train, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
