"""Shrinking by area gives every pixel of the image its exact share."""

import numpy as np
import pytest
from PIL import Image

from vqgan.data.images.area import shrink_by_area


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


def by_definition(pixels: np.ndarray, side: int) -> np.ndarray:
    """Every pixel divided into `side` x `side` little ones, which are then averaged in blocks."""
    fine = pixels.astype(np.float64).repeat(side, 0).repeat(side, 1)
    source = len(pixels)
    return fine.reshape(side, source, side, source, 3).mean((1, 3))


@pytest.mark.parametrize(("source", "side"), [(9, 7), (16, 16), (17, 5), (30, 10), (11, 1), (25, 24)])
def test_the_whole_image_is_that_of_the_definition(source: int, side: int) -> None:
    pixels = noise(source)
    shrunk = shrink_by_area(pixels, side, 0, 0, side)
    assert shrunk.dtype == np.uint8
    assert np.abs(shrunk.transpose(1, 2, 0) - by_definition(pixels, side)).max() <= 0.5 + 1e-3


def test_where_the_sides_are_multiples_it_is_pillows_box() -> None:
    pixels = noise(64)
    box = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX)
    difference = shrink_by_area(pixels, 16, 0, 0, 16).transpose(1, 2, 0).astype(int) - np.asarray(box)
    assert np.abs(difference).max() <= 1, "Pillow rounds twice, between its two passes as well"


def test_a_crop_is_that_part_of_the_whole() -> None:
    pixels = noise(101)
    whole = shrink_by_area(pixels, 37, 0, 0, 37)
    for top, left, size in ((0, 0, 12), (5, 25, 12), (25, 25, 12), (0, 0, 37)):
        crop = shrink_by_area(pixels, 37, top, left, size)
        part = whole[:, top : top + size, left : left + size]
        assert np.abs(crop.astype(int) - part).max() <= 1, "float32 sums may round a half to either side"
        assert (crop != part).mean() < 0.01


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 9 pixels can be shrunk to 9, received 8x8"):
        shrink_by_area(noise(8), 9, 0, 0, 9)
    with pytest.raises(ValueError, match="received 4x8"):
        shrink_by_area(noise(8)[:, :4], 2, 0, 0, 2)
    with pytest.raises(ValueError, match=r"a crop of 4 pixels at \(3, 0\) leaves an image of 6x6"):
        shrink_by_area(noise(8), 6, 0, 3, 4)
    for top, left in ((3, 0), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=rf"at \({left}, {top}\) leaves an image of 6x6"):
            shrink_by_area(noise(8), 6, top, left, 4)
    assert shrink_by_area(noise(8), 8, 4, 4, 4).shape == (3, 4, 4), "as large as it is, to the last pixel"
