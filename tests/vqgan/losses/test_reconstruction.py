"""Reconstruction losses against their formulas, written again in numpy."""

import math

import numpy as np
import pytest
import torch

from vqgan.layers.logit_laplace import expand_pixels, logit_laplace_mean, shrink_pixels
from vqgan.losses.reconstruction import LOG_SCALE_RANGE, l1, l2, logit_laplace

pytestmark = pytest.mark.threads


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def density(x: np.ndarray, mean: float, scale: float) -> np.ndarray:
    """DALL-E A.3, equation 2, on (0, 1)."""
    return np.exp(-np.abs(np.log(x / (1 - x)) - mean) / scale) / (2 * scale * x * (1 - x))


def test_l1_and_l2_are_means_on_the_unit_scale() -> None:
    reconstruction, original = images(0), images(1)
    difference = (reconstruction.double().numpy() + 1) / 2 - (original.double().numpy() + 1) / 2
    assert l1(reconstruction, original).item() == pytest.approx(np.abs(difference).mean(), rel=1e-6)
    assert l2(reconstruction, original).item() == pytest.approx((difference**2).mean(), rel=1e-6)
    black, white = torch.full((1, 3, 4, 4), -1.0), torch.ones(1, 3, 4, 4)
    assert l1(black, white).item() == l2(black, white).item() == 1.0


def test_the_density_integrates_to_one() -> None:
    # In u = logit x, dx = x (1 - x) du: a Laplace density, as it should be; checked without that knowledge in x.
    x = np.linspace(0, 1, 2_000_001)[1:-1]
    for mean, scale in ((0.0, 0.5), (1.0, 0.3), (-0.7, 0.8)):
        assert np.trapezoid(density(x, mean, scale), x) == pytest.approx(1.0, abs=1e-3)


def test_logit_laplace_is_the_negative_log_density() -> None:
    original = images(0)
    mean, log_scale = images(1) * 3, images(2)
    expected = [
        -np.log(density(0.8 * (x + 1) / 2 + 0.1, mu, math.exp(ln_b)))
        for x, mu, ln_b in zip(*(t.double().flatten().tolist() for t in (original, mean, log_scale)), strict=True)
    ]
    assert logit_laplace(mean, log_scale, original).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_scale_is_clamped() -> None:
    original, mean = images(0), images(1)
    for bound, beyond in zip(LOG_SCALE_RANGE, (-50.0, 50.0), strict=True):
        at, outside = (torch.full_like(mean, value) for value in (bound, beyond))
        torch.testing.assert_close(logit_laplace(mean, outside, original), logit_laplace(mean, at, original))


def test_black_and_white_have_finite_gradients() -> None:
    extremes = torch.tensor([-1.0, 1.0]).repeat(1, 3, 4, 2)
    mean, log_scale = (torch.zeros_like(extremes).requires_grad_() for _ in range(2))
    logit_laplace(mean, log_scale, extremes).backward()
    for parameter in (mean, log_scale):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_fp32_under_autocast(dtype: torch.dtype) -> None:
    mean, log_scale, original = images(0), images(1), images(2)
    low = [tensor.to(dtype) for tensor in (mean, log_scale, original)]
    high = [tensor.float() for tensor in low]
    for loss, inputs in ((l1, (0, 2)), (l2, (0, 2)), (logit_laplace, (0, 1, 2))):
        expected = loss(*(high[index] for index in inputs))
        # Every input in low precision, and each of them alone.
        for lowered in (set(inputs), *({index} for index in inputs)):
            with torch.autocast("cpu", dtype):
                value = loss(*(low[index] if index in lowered else high[index] for index in inputs))
            assert value.dtype == torch.float32
            assert torch.equal(value, expected)


def test_pixel_maps_invert_each_other() -> None:
    original = images(0)
    shrunk = shrink_pixels(original)
    assert shrink_pixels(torch.tensor([-1.0, 0.0, 1.0])).tolist() == pytest.approx([0.1, 0.5, 0.9])
    torch.testing.assert_close(expand_pixels(shrunk), original)
    torch.testing.assert_close(logit_laplace_mean(torch.logit(shrunk)), original)
    limits = logit_laplace_mean(torch.tensor([-100.0, 100.0]))
    assert limits.tolist() == pytest.approx([-1.25, 1.25])


def test_the_mode_of_the_mean_is_the_image() -> None:
    original = images(0)
    log_scale = torch.full_like(original, -1.0)
    best = torch.logit(shrink_pixels(original))
    assert logit_laplace(best, log_scale, original) < logit_laplace(best + 0.1, log_scale, original)
    assert logit_laplace(best, log_scale, original) < logit_laplace(best - 0.1, log_scale, original)
