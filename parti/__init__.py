"""Stage 2: from text to image tokens, and from there to images."""

from typing import TYPE_CHECKING

import vqgan.openmp  # noqa: F401  before anything imports torch: see there

if TYPE_CHECKING:
    from parti.pipeline import TextToImage

__all__ = ["TextToImage"]


def __getattr__(name: str) -> object:
    if name == "TextToImage":
        from parti.pipeline import TextToImage  # on use, so that importing the package loads nothing heavy

        return TextToImage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
