"""Settings of a code cache."""

from pydantic import Field, model_validator

from parti.text import TextConfig
from vqgan.config.schema import Config
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.sources.open_source import SourceConfig
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.training.parallel.seeding import SEEDS


class ImagesConfig(Config):
    """Source of images and captions, and how they are read."""

    source: SourceConfig = ShapesConfig()
    """The data set."""
    transform: TransformConfig = TransformConfig()
    """Transform from an image to the tokenizer's square."""
    batch_size: int = Field(64, gt=0)
    """Squares per batch and process."""
    workers: int = Field(0, ge=0)
    """Loader workers per process; 0 loads in the process itself, as does a stream."""


class EncodeConfig(Config):
    """The code cache to build."""

    tokenizer: str
    """Stage-1 run folder, its model folder, or a Hub name (owner/name): the image tokenizer."""
    out: str
    """Folder of the cache. Running again with the same folder and options resumes."""
    data: ImagesConfig = ImagesConfig()
    """Images and captions."""
    text: TextConfig | None = None
    """The text vocabulary, as in a stage-2 run; its ids are cached too. null: captions only."""
    views: int = Field(1, gt=0)
    """Versions of each training image, each with its own random crop and mirroring; training picks one at random.
    1: the image as in evaluation. Validation images always have that single version."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of the random crops: a version depends on (seed, position of the image, number of the version)."""
    shard_size: int = Field(8192, gt=0)
    """Items of the data set per shard; a kill loses the shards in progress, one per process."""

    @model_validator(mode="after")
    def _check_crops_differ(self) -> "EncodeConfig":
        transform = self.data.transform
        if self.views > 1 and transform.crop == transform.evaluation_crop and not transform.flip:
            raise ValueError(
                f"crops is {self.views}, but data.transform.crop {transform.crop} without flip draws nothing: all "
                "would be equal; set data.transform.crop to random, or crops to 1"
            )
        return self
