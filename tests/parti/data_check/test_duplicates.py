"""Copies: to the pixel, and those that were saved again or resized; different images are none."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from parti.data_check import duplicates as duplicates
from parti.data_check.duplicates import exact_duplicates, near_duplicates
from parti.data_check.scan import ImageStats, image_stats
from vqgan.data.source import Sample
from vqgan.data.sources.shapes import Shapes, ShapesConfig


def image(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Smooth, as photographs are: what survives JPEG and resizing."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def look(image: Image.Image) -> ImageStats:
    return image_stats(Sample(image, None, "x"))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def test_exact_copies_have_the_same_size_and_pixels() -> None:
    black = Image.new("RGB", (6, 4))
    stats = list(map(look, [image(0), image(1), black, image(0), Image.new("RGB", (4, 6)), image(0)]))
    assert exact_duplicates(stats) == [[0, 3, 5]]


def test_near_copies_are_found_by_brute_force_and_by_the_index_alike() -> None:
    images = [image(seed) for seed in range(40)]
    images += [as_jpeg(images[3], 80), images[7].resize((45, 30)), images[9].point(lambda value: value * 0.99)]
    images += [images[11]]  # an exact copy is no near one
    stats = list(map(look, images))
    assert near_duplicates(stats) == [(3, 40), (7, 41), (9, 42)]


def test_a_small_mark_makes_another_image() -> None:
    plain = Image.new("RGB", (96, 96), (200, 220, 240))
    marked = plain.copy()
    ImageDraw.Draw(marked).rectangle((40, 40, 47, 47), fill=(0, 0, 0))
    assert near_duplicates([look(plain), look(marked)]) == []


def test_generated_images_of_one_style_are_not_near_copies() -> None:
    source = Shapes(ShapesConfig(train_size=120), "train", 32)
    stats = [image_stats(source[index]) for index in range(120)]
    thumbnails = np.stack([found.thumbnail for found in stats]).reshape(120, -1).astype(float)
    differences = thumbnails[:, None] - thumbnails[None]
    alike = (np.sqrt((differences**2).mean(-1)) <= 2) & (abs(differences).max(-1) <= 8)
    expected = [(one, other) for one, other in zip(*np.nonzero(alike), strict=True) if one < other]
    assert near_duplicates(stats) == expected


def test_too_many_images_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = [look(image(seed)) for seed in range(3)]
    assert near_duplicates(stats[:1]) == []
    monkeypatch.setattr(duplicates, "MOST_IMAGES", 2)
    assert near_duplicates(stats) is None
