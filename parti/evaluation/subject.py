"""A text-to-image model as the evaluation sees it: it draws prompts, and says what it is. One for each pipeline."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parti.evaluation.likelihood import LikelihoodMeter
from parti.fused.synthesis.synthesis_pipeline import ProgressiveTextToImage
from parti.pipeline import Drawn, TextToImage, recommended_sampling
from parti.pipelines import pipeline_of
from parti.sampling.generate import SamplingConfig
from parti.text.tokenizer import TextTokenizer
from vqgan.config import ConfigError
from vqgan.evaluation import image_size_word
from vqgan.metrics.protocol import file_sha256
from vqgan.model_folder import CONFIG_FILE, WEIGHTS_FILE

IMAGE_TOKENIZER = "image_tokenizer"

Draw = Callable[[Sequence[tuple[str, int]], int], Iterator[Drawn]]
"""The pictures of (prompt, seed) pairs in their order, so many at once."""


@dataclass(frozen=True)
class Subject:
    """A model that is being measured."""

    draw: Draw
    sampling: Mapping[str, Any]
    """The settings that it draws with; empty where it has none."""
    text_tokenizer: TextTokenizer
    image_size: int
    about: Mapping[str, Any]
    """What was measured, in full."""
    identity: Mapping[str, str]
    """Hashes of all weights that a picture depends on."""
    head: str
    """The model in a line, for the console."""
    likelihood: LikelihoodMeter | None = None
    """For models of codes."""

    @property
    def quoted(self) -> dict[str, Any]:
        """What every figure's protocol says of the model."""
        return {
            name: value for name, value in self.about.items() if name not in ("config", "text_length", "parameters")
        }


def defaults_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The sampling settings that a model recommends, empty where it has none, and the picture size as a word of the
    command line. No weights are read. Raises ModelFolderError or ConfigError."""
    if pipeline_of(folder) is TextToImage:
        return recommended_sampling(folder).model_dump(mode="json"), image_size_word(folder / IMAGE_TOKENIZER)
    side = ProgressiveTextToImage.config_of(folder).sides[-1]
    return {}, f"--data.transform.image_size={side}"


def open_subject(folder: Path, sampling: SamplingConfig | None, device: torch.device) -> Subject:
    """Read a model folder. Raises ModelFolderError, or ConfigError where `sampling` and the model do not fit."""
    if pipeline_of(folder) is TextToImage:
        return _of_codes(folder, sampling or recommended_sampling(folder), device)
    if sampling is not None:
        raise ConfigError(f"sampling: the model in {folder} draws in one pass, without settings; leave sampling out")
    return _progressive(folder, device)


def _of_codes(folder: Path, sampling: SamplingConfig, device: torch.device) -> Subject:
    model = TextToImage.from_pretrained(folder).to(device)
    tokens, size = model.generator.tokens, model.image_tokenizer.image_size
    weights = file_sha256(folder / WEIGHTS_FILE)
    tokenizer_weights = file_sha256(folder / IMAGE_TOKENIZER / WEIGHTS_FILE)
    parameters = _parameters(model.generator)

    def draw(wanted: Sequence[tuple[str, int]], batch_size: int) -> Iterator[Drawn]:
        return model.stream(wanted, sampling, batch_size=batch_size)

    return Subject(
        draw=draw,
        sampling=sampling.model_dump(mode="json"),
        text_tokenizer=model.text_tokenizer,
        image_size=size,
        about={
            "path": str(folder),
            "weights_sha256": weights,
            "image_tokenizer_sha256": tokenizer_weights,
            "config": _config(folder),
            "image_size": size,
            "vocab_size": tokens.image_vocab_size,
            "codes_per_picture": tokens.image_length,
            "text_length": tokens.text_length,
            "parameters": parameters,
        },
        identity={"weights_sha256": weights, "image_tokenizer_sha256": tokenizer_weights},
        head=f"{folder}: {parameters:,} weights, {tokens.image_length} of {tokens.image_vocab_size} codes a picture of "
        f"{size}x{size}, weights sha256 {weights[:16]}",
        likelihood=LikelihoodMeter(model),
    )


def _progressive(folder: Path, device: torch.device) -> Subject:
    model = ProgressiveTextToImage.from_pretrained(folder).to(device)
    weights, parameters, size = file_sha256(folder / WEIGHTS_FILE), _parameters(model.generator), model.sides[-1]

    def draw(wanted: Sequence[tuple[str, int]], batch_size: int) -> Iterator[Drawn]:
        return model.stream(wanted, batch_size=batch_size)

    return Subject(
        draw=draw,
        sampling={},
        text_tokenizer=model.text_tokenizer,
        image_size=size,
        about={
            "path": str(folder),
            "weights_sha256": weights,
            "config": _config(folder),
            "image_size": size,
            "text_length": model.text_tokenizer.length,
            "parameters": parameters,
        },
        identity={"weights_sha256": weights},
        head=f"{folder}: {parameters:,} weights, pictures of {size}x{size} in one pass, weights sha256 {weights[:16]}",
    )


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _config(folder: Path) -> Any:
    return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
