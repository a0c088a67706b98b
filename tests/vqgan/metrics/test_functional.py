"""Metrics of PIL images and folders."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqgan import metrics
from vqgan.data.source import DataError
from vqgan.metrics import functional
from vqgan.metrics.inception import InceptionV3


def noise(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def brighter(image: Image.Image, levels: int) -> Image.Image:
    return Image.fromarray((np.asarray(image).astype(int) // 2 + levels).astype(np.uint8))


def folder_of(path: Path, images: dict[str, Image.Image]) -> Path:
    path.mkdir()
    for name, image in images.items():
        image.save(path / name)
    return path


def test_psnr_of_images_is_by_the_formula() -> None:
    a, b = brighter(noise(0), 0), brighter(noise(0), 10)  # an error of 10 levels everywhere
    assert metrics.psnr(a, b) == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert metrics.psnr(a, a) == 100
    assert metrics.psnr([a, a], [a, b]) == pytest.approx((100 + metrics.psnr(a, b)) / 2)
    assert metrics.ssim(a, a) == pytest.approx(1)
    assert metrics.ssim(a, noise(1)) < 0.5


def test_folders_are_compared_by_names_whatever_the_sizes(tmp_path: Path) -> None:
    small, large = noise(0), noise(1, 24)
    one = folder_of(tmp_path / "one", {"a.png": small, "b.png": large})
    two = folder_of(tmp_path / "two", {"b.png": large, "a.png": brighter(small, 3)})
    assert metrics.psnr(one, str(two)) == pytest.approx((metrics.psnr(small, brighter(small, 3)) + 100) / 2)
    (two / "a.png").rename(two / "c.png")
    with pytest.raises(ValueError, match=r"2 are in one of them alone, such as 'a\.png'"):
        metrics.psnr(one, two)


def test_other_sizes_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images and references differ"):
        metrics.psnr(noise(0), [noise(0), noise(1)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        metrics.fid(tmp_path / "empty", tmp_path / "empty", weights="random")


def test_fid_is_zero_for_equal_sets_and_grows_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "InceptionV3", functools.cache(InceptionV3))  # built once
    images = {f"{number}.png": noise(number) for number in range(3)}
    folder = folder_of(tmp_path / "real", images)
    assert metrics.fid(folder, list(images.values()), weights="random") == pytest.approx(0, abs=1e-3)
    assert metrics.fid(folder, [brighter(image, 90) for image in images.values()], weights="random") > 0.1
    with pytest.raises(ValueError, match="needs 2 references at least, received 1"):
        metrics.fid(folder, noise(0), weights="random")
