"""Which pipeline draws from a model folder: a literal table by what its config.json says it holds."""

from pathlib import Path

from parti.fused.synthesis.pipeline import KIND as SYNTHESIS
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.models import GENERATORS
from parti.pipeline import TextToImage
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError, find_model_folder, read_model_config

Pipeline = TextToImage | ProgressiveTextToImage

PIPELINES: dict[str, type[Pipeline]] = {**dict.fromkeys(GENERATORS, TextToImage), SYNTHESIS: ProgressiveTextToImage}
"""By the kind of model."""


def pipeline_of(folder: str | Path) -> type[Pipeline]:
    """The pipeline for a model folder, the run folder that has one in `model/`, or a Hub name.

    Raises ModelFolderError where there is none, or one that draws no images of prompts.
    """
    folder = find_model_folder(folder)
    values = read_model_config(folder)
    model = values.get("model")
    kind = values.get("kind", model.get("kind") if isinstance(model, dict) else None)
    if kind not in PIPELINES:
        found = f", of kind {kind!r}," if kind else ""
        raise ModelFolderError(f"{folder}{found} holds no text-to-image model; give the folder of a stage-2 run")
    return PIPELINES[kind]


def open_pipeline(folder: str | Path, image_tokenizer: str | None = None) -> Pipeline:
    """The model in a folder, drawing with another image tokenizer of the same codes where one is given.

    Raises what `pipeline_of` and the pipelines raise, ConfigError for an image tokenizer where no codes are drawn.
    """
    if pipeline_of(folder) is TextToImage:
        return TextToImage.from_pretrained(folder, image_tokenizer=image_tokenizer)
    if image_tokenizer is not None:
        raise ConfigError(
            f"image_tokenizer: the model in {folder} draws images without codes, so {image_tokenizer} has nothing to "
            "decode; leave it out"
        )
    return ProgressiveTextToImage.from_pretrained(folder)
