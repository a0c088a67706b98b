"""The residual quantizer against a search level by level, and its losses against the formula."""

import pytest
import torch
from torch import Tensor

from vqgan.quantizers import ResidualConfig, ResidualQuantizer

pytestmark = pytest.mark.threads


def quantizer(depth: int = 3, codes: int = 20, dim: int = 4, *, shared: bool) -> ResidualQuantizer:
    torch.manual_seed(0)
    config = ResidualConfig(codebook_size=codes, code_dim=dim, depth=depth, shared=shared)
    return ResidualQuantizer(config)


def latents() -> Tensor:
    return 2 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))


def books(model: ResidualQuantizer) -> list[Tensor]:
    """The codebook of each level."""
    own = list(model.parameters())
    return own * (3 // len(own))


@pytest.mark.parametrize("shared", [True, False])
def test_each_level_is_the_nearest_code_of_what_is_left_over(shared: bool) -> None:
    model = quantizer(shared=shared)
    codes = model(latents()).codes.view(2, 9, 3)
    left = latents().double()
    for level, book in enumerate(books(model)):
        nearest = (left[..., None, :] - book.double()).square().sum(-1).argmin(-1)
        assert torch.equal(codes[..., level], nearest), "a latent's codes stand side by side"
        left = left - book.double()[nearest]
    torch.testing.assert_close(model(latents()).latents, (latents().double() - left).float())


@pytest.mark.parametrize("shared", [True, False])
def test_losses_and_gradients_are_the_formulas(shared: bool) -> None:
    model = quantizer(shared=shared)
    x = latents().requires_grad_()
    result = model(x)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(result.loss, [x, *parameters])

    y = latents().requires_grad_()
    codes = result.codes.view(2, 9, 3)
    so_far, left, loss = torch.zeros_like(y), latents(), torch.zeros(())
    for level, book in enumerate(books(model)):
        chosen = book[codes[..., level]]
        so_far = so_far + chosen.detach()
        loss = loss + (left - chosen).square().mean() / 3 + 0.25 * (y - so_far).square().mean() / 3
        left = left - chosen.detach()
    torch.testing.assert_close(result.loss, loss)
    for one, other in zip(mine, torch.autograd.grad(loss, [y, *parameters]), strict=True):
        torch.testing.assert_close(one, other)
        assert other.abs().max() > 1e-3
    assert result.stats["quantization_error"].item() == pytest.approx(left.square().mean().item())


def test_more_levels_leave_less_over() -> None:
    x = 0.5 * torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(2))
    errors = []
    for depth in (1, 2, 4):
        model = quantizer(depth, codes=64, shared=False)
        for level, book in enumerate(model.parameters()):
            book.data *= 0.5 ** (level + 1)
        errors.append(model(x).stats["quantization_error"].item())
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > 1.5 * errors[2]


def test_own_levels_are_asked_one_question_a_latent_and_shared_ones_one_a_level() -> None:
    x = latents()
    own, shared = quantizer(shared=False), quantizer(shared=True)
    assert [len(look_up.latents) for look_up in own.look_ups(x, own.encode(x))] == [18, 18, 18]
    assert [len(look_up.latents) for look_up in own.look_ups(x, None)] == [18, 0, 0]
    assert [len(look_up.latents) for look_up in shared.look_ups(x, shared.encode(x))] == [54]
    assert [len(look_up.latents) for look_up in shared.look_ups(x, None)] == [18]


def test_codes_that_are_not_whole_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="10 codes are not whole latents of 3 codes each"):
        quantizer(shared=True).embed(torch.zeros(1, 10, dtype=torch.int64))
