"""Train a text-to-image model (stage 2): a transformer on the codes of a trained image tokenizer.

accelerate launch tools/train_parti.py --config configs/parti/shapes.yaml [--section.field value ...]

A config whose `objective` is another (fused_inpainting, fused_captioning, fused_synthesis) trains that, with options of
its own: --help beside --config lists them.
"""

import sys

from parti.objectives import choose_objective
from vqgan.cli.command_line import print_error, run_training
from vqgan.cli.console import command
from vqgan.config.schema import ConfigError


@command
def main(argv: list[str]) -> int:
    try:
        objective = choose_objective(argv)
    except ConfigError as error:
        print_error(error)
        return 2
    return run_training(argv, objective.config_type, objective.train, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
