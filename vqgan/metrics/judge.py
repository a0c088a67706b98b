"""Data sets whose captions can be checked from pixels alone."""

from collections.abc import Callable

from PIL import Image

from vqgan.data.shapes import ShapesConfig
from vqgan.data.sources import SourceConfig
from vqgan.metrics.shapes_checker import check

Judge = Callable[[Image.Image, str], bool]
"""Whether a picture shows what its caption says."""


def caption_judge(source: SourceConfig) -> Judge | None:
    """The judge of a data set; None where only people can tell."""
    if isinstance(source, ShapesConfig):
        return lambda picture, caption: check(picture, caption).correct
    return None
