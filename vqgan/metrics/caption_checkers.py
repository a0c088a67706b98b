"""Data sets whose captions can be checked from pixels alone."""

from collections.abc import Callable

from PIL import Image

from vqgan.data.sources.open_source import SourceConfig
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.metrics.shapes_checker import check

CaptionChecker = Callable[[Image.Image, str], bool]
"""Whether an image shows what its caption says."""


def caption_checker(source: SourceConfig) -> CaptionChecker | None:
    """Returns the caption checker of a data set; None if there is none."""
    if isinstance(source, ShapesConfig):
        return lambda image, caption: check(image, caption).correct
    return None
