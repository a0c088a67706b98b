"""Warm up the text encoder of stage 2: masked tokens, and the contrast of captions and images.

accelerate launch tools/train_text_encoder.py --config configs/text_encoder/shapes.yaml [--section.field value ...]
"""

import sys

from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig, train
from vqgan.cli.command_line import run_training
from vqgan.cli.console import command


@command
def main(argv: list[str]) -> int:
    return run_training(argv, TrainTextEncoderConfig, train, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
