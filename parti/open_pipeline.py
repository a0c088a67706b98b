"""Which pipeline generates images from a model folder: a literal table by the kind of model in its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parti.base_pipeline import Pipeline
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.models import GENERATORS
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from vqgan.hub.model_folder import ModelFolder, ModelFolderError, open_model_folder

PIPELINES: dict[str, type[Pipeline]] = {
    **dict.fromkeys(GENERATORS, TextToImage),
    **dict.fromkeys(ProgressiveTextToImage.kinds, ProgressiveTextToImage),
}
"""By the kind of model."""


@dataclass(frozen=True)
class StoredPipeline:
    """A text-to-image model that lies in a folder, found and its config.json read, weights unread."""

    folder: ModelFolder
    pipeline: type[Pipeline]

    @property
    def sampling(self) -> SamplingConfig | None:
        """The settings that the model recommends; None for a model without settings. Raises ConfigError."""
        return self.pipeline.sampling_in(self.folder)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels. Raises ModelFolderError or ConfigError."""
        return self.pipeline.image_size_in(self.folder)

    def check_supported(self, options: Mapping[str, str]) -> None:
        """Raises ConfigError for the first of `options`, by what the user calls it, that the model has no use for."""
        self.pipeline.check_supported(options, f"the model in {self.folder}")

    def load(self, image_tokenizer: str | Path | None = None) -> Pipeline:
        """Reads the weights. Arguments and errors are those of `Pipeline.from_pretrained`."""
        return self.pipeline.from_pretrained(self.folder, image_tokenizer=image_tokenizer)


def find_pipeline(folder: str | Path) -> StoredPipeline:
    """Finds a model folder, the run folder with one in `model/`, or a Hub name, and reads its config.json.

    Raises ModelFolderError where there is none, or one that generates no images of prompts.
    """
    found = open_model_folder(folder)
    if found.kind not in PIPELINES:
        kind = f", of kind {found.kind!r}," if found.kind else ""
        raise ModelFolderError(f"{found}{kind} holds no text-to-image model; give the folder of a stage-2 run")
    pipeline = PIPELINES[found.kind]
    return StoredPipeline(pipeline.open_folder(found), pipeline)


def open_pipeline(folder: str | Path, image_tokenizer: str | Path | None = None) -> Pipeline:
    """Reads the model in a folder, with another image tokenizer of the same codes where one is given.

    Raises what `find_pipeline` and `Pipeline.from_pretrained` raise.
    """
    return find_pipeline(folder).load(image_tokenizer)
