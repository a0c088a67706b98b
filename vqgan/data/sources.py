"""The data sources there are, by `kind`."""

from typing import Annotated

from pydantic import Field

from vqgan.data.folder import Folder, FolderConfig
from vqgan.data.hub import HubDataset, HubStream
from vqgan.data.hub_opening import DatasetConfig
from vqgan.data.mixture import MixedSourceConfig, MixtureConfig, mix
from vqgan.data.openmoji import OpenMoji, OpenMojiConfig
from vqgan.data.random_order import InRandomOrder
from vqgan.data.shapes import Shapes, ShapesConfig
from vqgan.data.shards.indexed import Shards
from vqgan.data.shards.opening import open_shards
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.source import Source, Split
from vqgan.data.stream import Stream

SourceConfig = Annotated[
    ShapesConfig | OpenMojiConfig | FolderConfig | ShardsConfig | DatasetConfig | MixtureConfig,
    Field(discriminator="kind"),
]
for _config in (MixedSourceConfig, MixtureConfig):  # a list of sources, and one of the sources: complete only here
    _config.model_rebuild(_types_namespace={"SourceConfig": SourceConfig, "MixedSourceConfig": MixedSourceConfig})


def open_source(
    config: SourceConfig,
    split: Split,
    image_size: int,
    *,
    require_captions: bool = False,
    at_least: int | None = None,
) -> Source | Stream:
    """One split of a data set; `image_size` is what drawn data sets (shapes, openmoji) are drawn at.

    Held-out items of an index come in a random order that is always the same. `at_least`: large JPEGs may be decoded
    smaller, down to this shorter side (`decode_image`).
    Raises DataError when the data set is missing, empty, or without captions where they are required.
    """
    match config:
        case MixtureConfig():
            return mix(
                config,
                [
                    open_source(part.source, split, image_size, require_captions=require_captions, at_least=at_least)
                    for part in config.sources
                ],
            )
        case ShapesConfig():
            return Shapes(config, split, image_size)
        case OpenMojiConfig():
            return OpenMoji(config, split, image_size)
        case FolderConfig():
            return Folder(config, split, require_captions=require_captions, at_least=at_least)
        case ShardsConfig():
            shards = open_shards(config, split, require_captions=require_captions, at_least=at_least)
            own = split == "heldout" and bool(config.heldout_paths)
            return InRandomOrder(shards) if own and isinstance(shards, Shards) else shards
        case DatasetConfig(streaming=True):
            return HubStream(config, split, require_captions=require_captions, at_least=at_least)
        case DatasetConfig():
            rows = HubDataset(config, split, require_captions=require_captions, at_least=at_least)
            own = split == "heldout" and config.heldout_split is not None
            return InRandomOrder(rows) if own else rows
