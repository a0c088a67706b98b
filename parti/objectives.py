"""The objectives of `tools/train_parti.py`, by the `objective` of a config; without one, the next token."""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import parti.fused.captioning.train_captioning
import parti.fused.inpainting.train_inpainting
import parti.fused.synthesis.train_synthesis
import parti.mim.train_mim as mim
import parti.next_token.train_next_token
from vqgan.cli.command_line import split_arguments
from vqgan.config.schema import Config, ConfigError, read_yaml, split_overrides


class Objective(NamedTuple):
    """A run's config, and what runs it: true when complete, false when interrupted."""

    config_type: type[Config]
    train: Callable[[Any], bool]


DEFAULT = "next_token"
OBJECTIVES = {
    "next_token": Objective(
        parti.next_token.train_next_token.TrainPartiConfig, parti.next_token.train_next_token.train
    ),
    "fused_inpainting": Objective(
        parti.fused.inpainting.train_inpainting.TrainInpaintingConfig, parti.fused.inpainting.train_inpainting.train
    ),
    "fused_captioning": Objective(
        parti.fused.captioning.train_captioning.TrainCaptioningConfig, parti.fused.captioning.train_captioning.train
    ),
    "fused_synthesis": Objective(
        parti.fused.synthesis.train_synthesis.TrainSynthesisConfig, parti.fused.synthesis.train_synthesis.train
    ),
    "mae": Objective(mim.TrainMAEConfig, mim.train),
    "simmim": Objective(mim.TrainSimMIMConfig, mim.train),
    "beit": Objective(mim.TrainBEiTConfig, mim.train),
    "mpp": Objective(mim.TrainMPPConfig, mim.train),
}


def choose_objective(argv: list[str]) -> Objective:
    """Returns the one that the config file among the words names, or the option `--objective`.

    Raises ConfigError for an unknown one, or for a file that cannot be read.
    """
    path, overrides, _ = split_arguments([word for word in argv if word not in ("--help", "-h")])
    given = {} if path is None else read_yaml(path)
    name = dict(split_overrides(overrides)).get("objective", given.get("objective", DEFAULT))
    if name not in OBJECTIVES:
        nearest = difflib.get_close_matches(str(name), OBJECTIVES, 1, 0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ConfigError(f"objective: {name!r} is not a choice; {hint}one of: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
