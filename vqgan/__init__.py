"""Stage 1: image tokenizers, and the data, training loop and metrics that both stages stand on."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqgan.image_tokenizer import ImageTokenizer


def load_tokenizer(folder: str | Path) -> "ImageTokenizer":
    """The image tokenizer of a model folder or run folder, trained here or imported from another project.

    Raises ModelFolderError when the folder holds none.
    """
    from vqgan.image_tokenizer import ImageTokenizer  # here, so that importing the package loads nothing heavy

    return ImageTokenizer.from_pretrained(folder)
