"""The data sources there are, by `kind`."""

from typing import Annotated

from pydantic import Field

from vqgan.data.folder import Folder, FolderConfig
from vqgan.data.hub import DatasetConfig, HubDataset, HubStream
from vqgan.data.openmoji import OpenMoji, OpenMojiConfig
from vqgan.data.shapes import Shapes, ShapesConfig
from vqgan.data.source import Source, Split

SourceConfig = Annotated[
    ShapesConfig | OpenMojiConfig | FolderConfig | DatasetConfig,
    Field(discriminator="kind"),
]


def open_source(
    config: SourceConfig, split: Split, image_size: int, *, require_captions: bool = False
) -> Source | HubStream:
    """One split of a data set; `image_size` is what drawn data sets (shapes, openmoji) are drawn at.

    Raises DataError when the data set is missing, empty, or without captions where they are required.
    """
    match config:
        case ShapesConfig():
            return Shapes(config, split, image_size)
        case OpenMojiConfig():
            return OpenMoji(config, split, image_size)
        case FolderConfig():
            return Folder(config, split, require_captions=require_captions)
        case DatasetConfig(streaming=True):
            return HubStream(config, split, require_captions=require_captions)
        case DatasetConfig():
            return HubDataset(config, split, require_captions=require_captions)
