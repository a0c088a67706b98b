"""Finite scalar quantization against the paper's listing (appendix A.1), written out number by number."""

import math

import pytest
import torch

from tests.vqgan.quantizers.mixtures import mixture, modes_with_a_code_of_their_own
from vqgan.config.schema import ConfigError, validate
from vqgan.quantizers import FiniteScalarConfig, FiniteScalarQuantizer

pytestmark = pytest.mark.threads


def quantizer(*levels: int) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(FiniteScalarConfig(levels=levels))


def listing(z: float, levels: int) -> int:
    """The paper's `bound` and `round` of one number, moved to 0 ... levels - 1."""
    half_l = (levels - 1) * (1 - 1e-3) / 2
    offset = 0.0 if levels % 2 == 1 else 0.5
    shift = math.tan(offset / half_l)
    return round(math.tanh(z + shift) * half_l - offset) + levels // 2


def test_digits_are_those_of_the_papers_listing() -> None:
    model = quantizer(8, 5, 4, 3, 2)
    latents = 2 * torch.randn(1, 300, 5, generator=torch.Generator().manual_seed(0))
    codes = model(latents).codes[0]
    for latent, code in zip(latents[0].tolist(), codes.tolist(), strict=True):
        digits = [listing(z, levels) for z, levels in zip(latent, (8, 5, 4, 3, 2), strict=True)]
        radix = [1, 8, 40, 160, 480]
        assert code == sum(digit * place for digit, place in zip(digits, radix, strict=True))


@pytest.mark.parametrize("levels", [(3,), (8, 5), (2, 3, 4), (7, 5, 5, 5, 5)])
def test_numbers_and_points_are_a_bijection_over_all_codes(levels: tuple[int, ...]) -> None:
    model = quantizer(*levels)
    assert model.codebook_size == math.prod(levels)
    codes = torch.arange(model.codebook_size)[None]
    points = model.embed(codes)
    assert points[0].unique(dim=0).shape == (model.codebook_size, len(levels))
    # The paper's normalization: an even number of levels reaches -1, and one step less than 1.
    assert points.min() == -1
    assert points[..., 0].max() == ((levels[0] - 1) // 2) / (levels[0] // 2)
    # Latents that fall on a point come back as its number.
    whole = points * (model.levels // 2)
    half = (model.levels - 1) * (1 - 1e-3) / 2
    offset = (model.levels % 2 == 0) * 0.5
    inside = ((whole + offset) / half).clamp(-0.9999, 0.9999)
    assert torch.equal(model.encode(inside.atanh() - (offset / half).tan()), codes)


def test_all_levels_are_reached() -> None:
    model = quantizer(2, 3, 4, 8)
    latents = torch.linspace(-9, 9, 4001)[None, :, None].expand(1, -1, 4)
    points = model(latents).latents[0]
    assert [points[:, index].unique().numel() for index in range(4)] == [2, 3, 4, 8]
    assert (points.diff(dim=0) >= 0).all(), "a larger latent never has a smaller level"


def test_the_gradient_is_that_of_the_squashing() -> None:
    model = quantizer(5, 4)
    latents = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(latents).latents.sum().backward()
    half = torch.tensor([4, 3]) * (1 - 1e-3) / 2
    shift = torch.tensor([0.0, math.tan(0.5 / half[1])])
    expected = (1 - (latents + shift).tanh().square()) * half / torch.tensor([2, 2])
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, expected.detach())


def test_there_is_nothing_to_learn_and_no_loss() -> None:
    model = quantizer(5, 4)
    result = model(torch.randn(1, 6, 2))
    assert result.loss.item() == 0
    assert not list(model.parameters())


def test_separated_modes_have_codes_of_their_own() -> None:
    centers = torch.cartesian_prod(torch.tensor([-1.5, 0.0, 1.5]), torch.tensor([-1.5, 0.0, 1.5]))
    labels = torch.arange(9).repeat_interleave(30)
    latents = centers[labels] + mixture(torch.zeros(1, 2), 270, seed=0)
    assert modes_with_a_code_of_their_own(quantizer(5, 5).encode(latents[None])[0], labels) == 1


def test_the_paper_has_the_sizes_of_the_docstring() -> None:
    for levels, size in [((8, 6, 5), 2**8), ((8, 5, 5, 5), 2**10), ((7, 5, 5, 5, 5), 2**12), ((8, 8, 8, 6, 5), 2**14)]:
        assert quantizer(*levels).codebook_size == pytest.approx(size, rel=0.1)
    assert FiniteScalarQuantizer(FiniteScalarConfig()).codebook_size == 15_360


def test_one_level_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"levels\.1: input should be greater than or equal to 2, received 1"):
        validate(FiniteScalarConfig, {"levels": [5, 1]}, "the test")
