"""A text-to-image model as the evaluation sees it: it draws prompts, and says what it is. One for each pipeline."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parti.evaluation.likelihood import LikelihoodMeter
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.open_pipeline import open_pipeline, pipeline_of
from parti.pipeline import GeneratedImage, TextToImage, recommended_sampling
from parti.sampling.generate import SamplingConfig
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import ConfigError
from vqgan.evaluation import image_size_of
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, find_model_folder
from vqgan.system.checksums import file_sha256

IMAGE_TOKENIZER = "image_tokenizer"

Draw = Callable[[Sequence[tuple[str, int]], int], Iterator[GeneratedImage]]
"""The images of (prompt, seed) pairs in their order, so many at once."""


@dataclass(frozen=True)
class ModelUnderTest:
    """A model that is being measured."""

    generate: Draw
    sampling: Mapping[str, Any]
    """The settings that it draws with; empty where it has none."""
    text_tokenizer: TextTokenizer
    image_size: int
    about: Mapping[str, Any]
    """What was measured, in full."""
    identity: Mapping[str, str]
    """Hashes of all weights that an image depends on."""
    head: str
    """The model in a line, for the console."""
    likelihood: LikelihoodMeter | None = None
    """For models of codes."""

    @property
    def quoted(self) -> dict[str, Any]:
        """What every metric's protocol says of the model."""
        return {
            name: value for name, value in self.about.items() if name not in ("config", "text_length", "parameters")
        }


def defaults_of(folder: Path) -> tuple[dict[str, Any], int]:
    """The sampling settings that a model recommends, empty where it has none, and the size of its images.
    No weights are read. Raises ModelFolderError or ConfigError."""
    if pipeline_of(folder) is TextToImage:
        return recommended_sampling(folder).model_dump(mode="json"), image_size_of(folder / IMAGE_TOKENIZER)
    return {}, ProgressiveTextToImage.config_of(ProgressiveTextToImage.open_folder(folder)).sides[-1]


def open_model_under_test(
    folder: Path, sampling: SamplingConfig | None, device: torch.device, image_tokenizer: str | None = None
) -> ModelUnderTest:
    """Read a model folder; `image_tokenizer` draws in the place of its own.

    Raises ModelFolderError, or ConfigError where `sampling`, the image tokenizer and the model do not fit.
    """
    model = open_pipeline(folder, image_tokenizer).to(device)
    if isinstance(model, TextToImage):
        own = folder / IMAGE_TOKENIZER
        decoder = find_model_folder(image_tokenizer) if image_tokenizer is not None else own
        return _of_codes(model, folder, decoder, sampling or model.sampling)
    if sampling is not None:
        raise ConfigError(f"sampling: the model in {folder} draws in one pass, without settings; leave sampling out")
    return _progressive(model, folder)


def _of_codes(model: TextToImage, folder: Path, decoder: Path, sampling: SamplingConfig) -> ModelUnderTest:
    """`decoder`: the model folder of the image tokenizer."""
    tokens, size = model.generator.tokens, model.image_tokenizer.image_size
    weights = file_sha256(folder / WEIGHTS_FILE)
    tokenizer_weights = file_sha256(decoder / WEIGHTS_FILE)
    parameters = _parameters(model.generator)

    def generate(wanted: Sequence[tuple[str, int]], batch_size: int) -> Iterator[GeneratedImage]:
        return model.stream(wanted, sampling, batch_size=batch_size)

    return ModelUnderTest(
        generate=generate,
        sampling=sampling.model_dump(mode="json"),
        text_tokenizer=model.text_tokenizer,
        image_size=size,
        about={
            "path": str(folder),
            "weights_sha256": weights,
            "image_tokenizer": str(decoder),
            "image_tokenizer_sha256": tokenizer_weights,
            "codes_fingerprint": str(model.image_tokenizer.codes_fingerprint()),
            "config": _config(folder),
            "image_size": size,
            "vocab_size": tokens.image_vocab_size,
            "codes_per_image": tokens.image_length,
            "text_length": tokens.text_length,
            "parameters": parameters,
        },
        identity={"weights_sha256": weights, "image_tokenizer_sha256": tokenizer_weights},
        head=f"{folder}: {parameters:,} weights, {tokens.image_length} of {tokens.image_vocab_size} codes an image of "
        f"{size}x{size}, weights sha256 {weights[:16]}; decoded by {decoder}",
        likelihood=LikelihoodMeter(model),
    )


def _progressive(model: ProgressiveTextToImage, folder: Path) -> ModelUnderTest:
    weights, parameters, size = file_sha256(folder / WEIGHTS_FILE), _parameters(model.generator), model.sides[-1]

    def generate(wanted: Sequence[tuple[str, int]], batch_size: int) -> Iterator[GeneratedImage]:
        return model.stream(wanted, batch_size=batch_size)

    return ModelUnderTest(
        generate=generate,
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
        head=f"{folder}: {parameters:,} weights, images of {size}x{size} in one pass, weights sha256 {weights[:16]}",
    )


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _config(folder: Path) -> Any:
    return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
