"""Train what a config says with its `objective`: an image tokenizer, a text-to-image model, a reranker, ...

parti train --config vqgan/shapes [--section.field value ...]
accelerate launch -m parti train --config parti/shapes [--section.field value ...]

--config takes a YAML file or the name of a shipped config. --help beside it lists the options of its objective.
"""

from collections.abc import Sequence
from pathlib import Path

from parti.objectives import OBJECTIVES, choose_objective
from vqgan.cli.command_line import Command, run_command, training_command
from vqgan.config.options import Option
from vqgan.errors import ConfigError


def main(argv: Sequence[str], choices: Sequence[str] = tuple(OBJECTIVES), about: str | None = __doc__) -> int:
    """Trains one of the objectives in `choices`; without a config the first of them."""

    def choose(path: Path | None, options: list[Option]) -> Command:
        given = {option.name: option.word for option in options}
        if path is None and not given.keys() & {"objective", "help"} and len(choices) == len(OBJECTIVES):
            raise ConfigError("nothing to train: give --config with a YAML file or the name of a shipped config")
        objective = choose_objective(path, given.get("objective"), choices)
        return training_command(objective.config_type, objective.train, about)

    return run_command(argv, choose)
