"""ModelUnderTest: a text-to-image model as the evaluation sees it, with what the report says of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from parti.base_pipeline import GeneratedImage, Pipeline, Requests, SampleOptions
from parti.evaluation.likelihood import LikelihoodMeter
from parti.open_pipeline import StoredPipeline
from parti.pipeline import IMAGE_TOKENIZER
from parti.sampling.generate import SamplingConfig
from vqgan.hub.model_folder import WEIGHTS_FILE, find_model_folder
from vqgan.system.checksums import file_sha256


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to evaluate."""

    pipeline: Pipeline
    sampling_config: SamplingConfig | None
    """The settings that it samples with; None where it has none."""
    about: Mapping[str, Any]
    """Description of the model for the results file."""
    identity: Mapping[str, str]
    """Hashes of all weights that an image depends on."""

    def generate(self, requests: Requests, batch_size: int) -> Iterator[GeneratedImage]:
        """Yields the images of (prompt, seed) pairs in their order, so many at once."""
        return self.pipeline.stream(requests, SampleOptions(self.sampling_config), batch_size=batch_size)

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings as the report quotes them; empty where it has none."""
        return self.sampling_config.model_dump(mode="json") if self.sampling_config is not None else {}

    @property
    def quoted(self) -> dict[str, Any]:
        """The model's entry in every metric's protocol."""
        return {
            name: value for name, value in self.about.items() if name not in ("config", "text_length", "parameters")
        }

    @property
    def head(self) -> str:
        """The model in a line, for the console."""
        about, size = self.about, self.about["image_size"]
        line = f"{about['path']}: {about['parameters']:,} weights, "
        sha256 = f"weights sha256 {about['weights_sha256'][:16]}"
        if self.pipeline.image_tokenizer is None:
            return f"{line}images of {size}x{size} in one pass, {sha256}"
        codes = f"{about['codes_per_image']} of {about['vocab_size']} codes an image of {size}x{size}"
        return f"{line}{codes}, {sha256}; decoded by {about['image_tokenizer']}"

    def likelihood_meter(self) -> LikelihoodMeter | None:
        """Returns what measures the likelihood of codes; None for a model that has none."""
        return LikelihoodMeter(self.pipeline) if self.pipeline.next_token_generator is not None else None


def load_model_under_test(
    stored: StoredPipeline, sampling: SamplingConfig | None, device: torch.device, image_tokenizer: str | None = None
) -> ModelUnderTest:
    """Reads the weights of a model; `image_tokenizer` decodes instead of its own.

    Raises ModelFolderError, or ConfigError if `sampling`, the image tokenizer and the model do not fit.
    """
    if sampling is not None:
        stored.check_supported({"sampling": "sampling"})
    pipeline = stored.load(image_tokenizer).to(device)
    folder = stored.folder.path
    identity = {"weights_sha256": file_sha256(folder / WEIGHTS_FILE)}
    about: dict[str, Any] = {"path": str(folder), **identity}
    tokenizer, codes = pipeline.image_tokenizer, {}
    if tokenizer is not None:
        decoder = find_model_folder(image_tokenizer) if image_tokenizer is not None else folder / IMAGE_TOKENIZER
        identity["image_tokenizer_sha256"] = file_sha256(decoder / WEIGHTS_FILE)
        about |= {"image_tokenizer": str(decoder), **identity, "codes_fingerprint": str(tokenizer.codes_fingerprint())}
        codes = {"vocab_size": tokenizer.vocab_size, "codes_per_image": tokenizer.grid[0] * tokenizer.grid[1]}
    about |= {
        "config": stored.folder.config,
        "image_size": pipeline.image_size,
        **codes,
        "text_length": pipeline.text_tokenizer.length,
        "parameters": sum(parameter.numel() for parameter in pipeline.generator.parameters()),
    }
    return ModelUnderTest(pipeline, sampling or pipeline.sampling, about, identity)
