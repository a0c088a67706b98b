"""What can be trained, by the `objective` that every config says: its config, and what runs it."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import parti.fused.captioning.train_captioning as captioning
import parti.fused.inpainting.train_inpainting as inpainting
import parti.fused.synthesis.train_synthesis as synthesis
import parti.mim.train_mim as mim
import parti.next_token.train_next_token as next_token
import parti.reranker.train_reranker as reranker
import parti.text_encoder.train_text_encoder as text_encoder
import parti.upsampler.train_upsampler as upsampler
import vqgan.train_tokenizer as image_tokenizer
from vqgan.config.schema import read_yaml
from vqgan.errors import ConfigError
from vqgan.training.run_config import RunConfig


class Objective(NamedTuple):
    """A run's config, and what runs it: true when complete, false when interrupted."""

    config_type: type[RunConfig]
    train: Callable[[Any], bool]


OBJECTIVES = {
    "image_tokenizer": Objective(image_tokenizer.TrainVQGANConfig, image_tokenizer.train),
    "next_token": Objective(next_token.TrainPartiConfig, next_token.train),
    "fused_inpainting": Objective(inpainting.TrainInpaintingConfig, inpainting.train),
    "fused_captioning": Objective(captioning.TrainCaptioningConfig, captioning.train),
    "fused_synthesis": Objective(synthesis.TrainSynthesisConfig, synthesis.train),
    "mae": Objective(mim.TrainMAEConfig, mim.train),
    "simmim": Objective(mim.TrainSimMIMConfig, mim.train),
    "beit": Objective(mim.TrainBEiTConfig, mim.train),
    "mpp": Objective(mim.TrainMPPConfig, mim.train),
    "reranker": Objective(reranker.TrainRerankerConfig, reranker.train),
    "text_encoder": Objective(text_encoder.TrainTextEncoderConfig, text_encoder.train),
    "upsampler": Objective(upsampler.TrainUpsamplerConfig, upsampler.train),
}


def choose_objective(
    path: str | Path | None, given: str | None = None, choices: Sequence[str] = tuple(OBJECTIVES)
) -> Objective:
    """The one that is `given` by the option `--objective`, or named by the config file; without both, the first of
    `choices`.

    Raises ConfigError for an objective that is unknown or none of the `choices`, or for a file that says none or cannot
    be read.
    """
    where = "the option --objective" if path is None or given is not None else str(path)
    if given is None and path is None:
        given = choices[0]
    name = given if given is not None else read_yaml(path or "").get("objective")
    if name is None:
        raise ConfigError(
            f"{path}: objective is missing, the key that says what the config trains; one of: {', '.join(choices)}"
        )
    if name not in OBJECTIVES:
        nearest = difflib.get_close_matches(str(name), OBJECTIVES, 1, 0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ConfigError(f"{where}: objective {name!r} is not a choice; {hint}one of: {', '.join(choices)}")
    if name not in choices:
        raise ConfigError(f"{where}: objective {name} is trained by `parti train`, here: {', '.join(choices)}")
    return OBJECTIVES[name]


def train(config: RunConfig) -> bool:
    """Trains what the config says, whatever its objective; true when complete, false when interrupted.

    A run folder that is there is resumed. Raises a UserError with one line: ConfigError, DataError, ...
    """
    return OBJECTIVES[config.objective].train(config)
