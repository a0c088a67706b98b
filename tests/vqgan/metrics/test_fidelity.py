"""PSNR and SSIM against their formulas, written out window by window."""

import numpy as np
import pytest
import torch

from vqgan.metrics.fidelity import FidelityMeter, psnr, ssim, to_float, to_uint8
from vqgan.metrics.protocol import Reconstructions

pytestmark = pytest.mark.slow_threads


def images(count: int, seed: int, side: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    originals = images(3, 0)
    noise = torch.tensor([0.02, 0.3, 1.5]).reshape(3, 1, 1, 1)
    return originals + noise * images(3, 1), originals  # the last leaves [-1, 1]


def levels(images: torch.Tensor) -> np.ndarray:
    return np.rint((np.clip(images.double().numpy(), -1, 1) + 1) * 127.5)


def ssim_of_planes(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, with the Gaussian window of section III.B."""
    places = np.arange(11) - 5
    window = np.exp(-(places[:, None] ** 2 + places[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    one, other = np.pad(one, 5, mode="reflect"), np.pad(other, 5, mode="reflect")
    values = []
    for row in range(one.shape[0] - 10):
        for column in range(one.shape[1] - 10):
            x, y = (plane[row : row + 11, column : column + 11] for plane in (one, other))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (var_x + var_y + c2))
    return float(np.mean(values))


def test_psnr_is_that_of_each_image() -> None:
    made, originals = pair()
    wanted = [
        10 * np.log10(255**2 / np.mean((one - other) ** 2))
        for one, other in zip(levels(made), levels(originals), strict=True)
    ]
    assert psnr(made, originals).tolist() == pytest.approx(wanted, abs=1e-4)


def test_ssim_is_that_of_each_image_and_channel() -> None:
    made, originals = pair()
    wanted = [
        np.mean([ssim_of_planes(one[channel], other[channel]) for channel in range(3)])
        for one, other in zip(levels(made), levels(originals), strict=True)
    ]
    assert ssim(made, originals).tolist() == pytest.approx(wanted, abs=2e-4)
    assert ssim(made[:1], originals[:1]).shape == (1,)


def test_equal_images_and_what_rounding_hides() -> None:
    originals = to_float(to_uint8(images(2, 0)))
    for same in (originals, originals + 0.4 / 127.5):
        assert psnr(same, originals).tolist() == [100, 100]
        assert ssim(same, originals).tolist() == pytest.approx([1, 1])


def test_rounding_is_to_the_nearest_level_and_back() -> None:
    every_level = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(to_float(every_level)), every_level)
    extremes = torch.tensor([-7.0, -1.0, 0.4 / 127.5, 0.6 / 127.5, 7.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(extremes)[0, 0, 0].tolist() == [0, 0, 128, 128, 255]


def test_the_meter_gives_means_over_images_not_batches() -> None:
    made, originals = pair()
    meter = FidelityMeter()
    for rows in (slice(0, 1), slice(1, 3)):
        codes = torch.zeros(len(made[rows]), 1, dtype=torch.int64)
        batch = (originals[rows], made[rows], to_uint8(originals[rows]), to_uint8(made[rows]), codes)
        meter.add(Reconstructions(*batch))
    metrics = {metric.name: metric.value for metric in meter.metrics()}
    wanted = {"psnr": psnr(made, originals).mean().item(), "ssim": ssim(made, originals).mean().item()}
    assert metrics == pytest.approx(wanted)
