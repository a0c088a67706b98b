"""Train an upsampler, which enlarges what an image tokenizer decodes.

accelerate launch tools/train_upsampler.py --config configs/upsampler/shapes_2x.yaml [--section.field value ...]

Then: python tools/sample.py --model runs/parti-shapes --prompt "..." --upsample runs/upsampler-shapes --out out
"""

import sys

from parti.upsampler.train_upsampler import TrainUpsamplerConfig, train
from vqgan.cli.command_line import run_training
from vqgan.cli.console import command


@command
def main(argv: list[str]) -> int:
    return run_training(argv, TrainUpsamplerConfig, train, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
