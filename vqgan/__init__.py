"""Stage 1: image tokenizers, and the data, training loop and metrics that both stages stand on."""

from pathlib import Path
from typing import TYPE_CHECKING

import vqgan.openmp  # noqa: F401  before anything imports torch: see there
from vqgan.system.torchvision_ops import declare_on_import

if TYPE_CHECKING:
    from vqgan.image_tokenizer import ImageTokenizer

declare_on_import()

__all__ = ["ImageTokenizer", "load_tokenizer"]


def load_tokenizer(folder: str | Path) -> "ImageTokenizer":
    """Returns the image tokenizer of a model folder, run folder or Hub name, trained here or imported from another
    project.

    Raises ModelFolderError when there is none.
    """
    from vqgan.image_tokenizer import ImageTokenizer  # here, so that importing the package loads nothing heavy

    return ImageTokenizer.from_pretrained(folder)


def __getattr__(name: str) -> object:
    if name == "ImageTokenizer":
        from vqgan.image_tokenizer import ImageTokenizer  # on use, likewise

        return ImageTokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
