"""The data sources there are, by `kind`."""

from typing import Annotated

from pydantic import Field

from vqgan.data.shards.indexed import Shards
from vqgan.data.shards.open_shards import open_shards
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.source import Source, Split
from vqgan.data.sources.folder import Folder, FolderConfig
from vqgan.data.sources.huggingface import HubDataset, HubStream
from vqgan.data.sources.huggingface_files import DatasetConfig
from vqgan.data.sources.mixture import MixedSourceConfig, MixtureConfig, mix
from vqgan.data.sources.openmoji import OpenMoji, OpenMojiConfig
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.data.stream import Stream
from vqgan.data.val_order import InRandomOrder

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
    min_side: int | None = None,
) -> Source | Stream:
    """One split of a data set; `image_size` is the size of rendered data sets (shapes, openmoji).

    Validation items of an index come in a random order that is always the same. `min_side`: large JPEGs may be decoded
    smaller, down to this shorter side (`decode_image`).
    Raises DataError when the data set is missing, empty, or without captions where they are required.
    """
    match config:
        case MixtureConfig():
            return mix(
                config,
                [
                    open_source(part.source, split, image_size, require_captions=require_captions, min_side=min_side)
                    for part in config.sources
                ],
            )
        case ShapesConfig():
            return Shapes(config, split, image_size)
        case OpenMojiConfig():
            return OpenMoji(config, split, image_size)
        case FolderConfig():
            return Folder(config, split, require_captions=require_captions, min_side=min_side)
        case ShardsConfig():
            shards = open_shards(config, split, require_captions=require_captions, min_side=min_side)
            own = split == "val" and bool(config.val_paths)
            return InRandomOrder(shards) if own and isinstance(shards, Shards) else shards
        case DatasetConfig(streaming=True):
            return HubStream(config, split, require_captions=require_captions, min_side=min_side)
        case DatasetConfig():
            rows = HubDataset(config, split, require_captions=require_captions, min_side=min_side)
            own = split == "val" and config.val_split is not None
            return InRandomOrder(rows) if own else rows
