"""Look-up-free quantization: its entropies against a sum over all codes, by brute force."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vqgan.quantizers.mixtures import modes_with_a_code_of_their_own
from vqgan.quantizers import LookupFreeConfig, LookupFreeQuantizer

pytestmark = pytest.mark.threads


def corners(bits: int) -> Tensor:
    """All codes, (2^bits, bits), in double precision; bit i of a code's number is dimension i."""
    return torch.tensor([[2.0 * (code >> bit & 1) - 1 for bit in range(bits)] for code in range(2**bits)]).double()


def brute_force(latents: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean entropy, and entropy of the mean, of softmax(-|z - c|^2 / temperature) over all codes."""
    distances = (latents[:, None] - corners(latents.shape[1])).square().sum(-1)
    log_q = (-distances / temperature).log_softmax(-1)
    mean = log_q.exp().mean(0)
    return -(log_q.exp() * log_q).sum(-1).mean(), -torch.special.xlogy(mean, mean).sum()


@pytest.mark.parametrize("bits", [1, 4, 5, 8])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_entropies_and_their_gradients_are_those_of_a_sum_over_all_codes(bits: int, temperature: float) -> None:
    model = LookupFreeQuantizer(
        LookupFreeConfig(bits=bits, temperature=temperature, entropy_weight=0.7, diversity=1.5, commitment_weight=0.25)
    )
    x = torch.randn(2, 15, bits, generator=torch.Generator().manual_seed(bits)).requires_grad_()
    y = x.detach().double().requires_grad_()
    result = model(x)
    sure, varied = brute_force(y.flatten(0, 1), temperature)
    commitment = (y - y.detach().sign()).square().mean()
    loss = 0.7 * (sure - 1.5 * varied) + 0.25 * commitment
    assert result.stats["latent_entropy"].item() == pytest.approx(sure.item(), abs=1e-5)
    assert result.stats["code_entropy"].item() == pytest.approx(varied.item(), abs=1e-5)
    assert result.loss.item() == pytest.approx(loss.item(), abs=1e-5)
    (mine,), (theirs,) = torch.autograd.grad(result.loss, x), torch.autograd.grad(loss, y)
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)
    assert theirs.abs().max() > 1e-4


@pytest.mark.parametrize("bits", [1, 3, 8, 13])
def test_numbers_and_corners_are_a_bijection_over_all_codes(bits: int) -> None:
    model = LookupFreeQuantizer(LookupFreeConfig(bits=bits))
    codes = torch.arange(2**bits)[None]
    assert model.codebook_size == 2**bits
    assert torch.equal(model.embed(codes)[0].double(), corners(bits))
    assert torch.equal(model.encode(0.1 * model.embed(codes)), codes)


def test_a_code_is_the_nearest_corner_and_zero_counts_as_minus_one() -> None:
    model = LookupFreeQuantizer(LookupFreeConfig(bits=6))
    x = torch.randn(1, 200, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode(x)[0], torch.cdist(x[0].double(), corners(6)).argmin(-1))
    assert model.encode(torch.zeros(1, 1, 6)).item() == 0


def test_far_latents_have_finite_losses_and_gradients() -> None:
    model = LookupFreeQuantizer(LookupFreeConfig(bits=8, temperature=0.01))
    x = (50 * torch.randn(1, 20, 8)).requires_grad_()
    loss = model(x).loss
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_entropies_of_many_bits_take_the_memory_of_the_codes_only() -> None:
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for part in result if isinstance(result, tuple | list) else [result]:
                self.largest = max(self.largest, part.numel() if isinstance(part, Tensor) else 0)
            return result

    model = LookupFreeQuantizer(LookupFreeConfig(bits=18))
    with Watch() as watch:
        entropy = model(torch.zeros(1, 64, 18)).stats["code_entropy"]
    assert entropy.item() == pytest.approx(18 * math.log(2), rel=1e-5)
    assert watch.largest == 2**18


def test_it_learns_a_code_for_every_mode() -> None:
    """Eight modes in one orthant: all have the same signs, until the entropy term has pulled them apart."""
    torch.manual_seed(0)
    centers = 1 + 0.3 * torch.randn(8, 6)
    model = LookupFreeQuantizer(LookupFreeConfig(bits=6, entropy_weight=1.0))
    encoder, decoder = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    torch.nn.init.eye_(encoder.weight)
    labels = torch.arange(8).repeat_interleave(20)

    def data() -> Tensor:
        return centers[labels][None] + 0.01 * torch.randn(1, 160, 6)

    assert modes_with_a_code_of_their_own(model.encode(encoder(data()))[0], labels) < 0.5
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
    for _ in range(200):
        x = data()
        result = model(encoder(x))
        loss = (decoder(result.latents) - x).square().mean() + result.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert modes_with_a_code_of_their_own(model.encode(encoder(data()))[0], labels) == 1
