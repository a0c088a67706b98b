"""What a code cache is to be made from."""

from pydantic import Field, model_validator

from parti.text import TextConfig
from vqgan.config import Config
from vqgan.data.shapes import ShapesConfig
from vqgan.data.sources import SourceConfig
from vqgan.data.transforms import TransformConfig
from vqgan.training.seeding import SEEDS


class PicturesConfig(Config):
    """Where pictures and captions come from, and how they are read."""

    source: SourceConfig = ShapesConfig()
    """The data set."""
    transform: TransformConfig = TransformConfig()
    """From any picture to the tokenizer's square."""
    batch_size: int = Field(64, gt=0)
    """Squares encoded at once by each process."""
    workers: int = Field(0, ge=0)
    """Loader processes beside each process; 0 loads in the process itself, as does a stream."""


class EncodeConfig(Config):
    """A code cache to make."""

    tokenizer: str
    """Stage-1 run folder, its model folder, or a Hub name (owner/name): the image tokenizer."""
    out: str
    """Folder of the cache. Running again with the same folder and options goes on."""
    data: PicturesConfig = PicturesConfig()
    """Pictures and captions."""
    text: TextConfig | None = None
    """The text vocabulary, as in a stage-2 run: its ids are kept too. null: captions alone."""
    crops: int = Field(1, gt=0)
    """Versions of each training picture, each with a random crop and mirroring of its own, among which training draws.
    1: the picture as in evaluation. Held-out pictures always have that one."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of the random crops: a version depends on (seed, position of the picture, number of the version)."""
    shard_size: int = Field(8192, gt=0)
    """Items of the data set in a shard; a kill loses the shards in progress, one a process."""

    @model_validator(mode="after")
    def _check_crops_differ(self) -> "EncodeConfig":
        transform = self.data.transform
        if self.crops > 1 and transform.crop == transform.evaluation_crop and not transform.flip:
            raise ValueError(
                f"crops is {self.crops}, but data.transform.crop {transform.crop} without flip draws nothing: all "
                "would be equal; set data.transform.crop to random, or crops to 1"
            )
        return self
