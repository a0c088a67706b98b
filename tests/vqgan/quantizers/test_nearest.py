"""The nearest-neighbor quantizer: the same codes as a brute-force search, and the gradients of the paper."""

import pytest
import torch
from torch import Tensor

from vqgan.quantizers import NearestConfig, NearestQuantizer

pytestmark = pytest.mark.threads


def quantizer(codes: int = 40, dim: int = 6, *, l2_normalize: bool = True) -> NearestQuantizer:
    torch.manual_seed(0)
    return NearestQuantizer(NearestConfig(codebook_size=codes, code_dim=dim, l2_normalize=l2_normalize))


def latents(batch: int = 3, tokens: int = 16, dim: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_codes_are_those_of_a_brute_force_search(l2_normalize: bool) -> None:
    model = quantizer(codes=500, l2_normalize=l2_normalize)
    vectors, codebook = latents(4, 256).double(), model.codebook.detach().double()
    if l2_normalize:
        vectors, codebook = (x / x.norm(dim=-1, keepdim=True) for x in (vectors, codebook))
    distances = (vectors[:, :, None] - codebook).square().sum(-1)  # (B, N, V)
    best, second = distances.topk(2, largest=False).values.unbind(-1)
    clear = second - best > 1e-5  # closer than that, fp32 may see the other order
    assert clear.float().mean() > 0.99
    codes = model(latents(4, 256)).codes
    assert codes.shape == (4, 256)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[clear], distances.argmin(-1)[clear])
    assert torch.equal(codes, model.encode(latents(4, 256)))


def test_the_losses_are_the_formulas() -> None:
    model = NearestQuantizer(NearestConfig(codebook_size=2, code_dim=2, l2_normalize=False, commitment_weight=0.25))
    model.codebook.data = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    result = model(torch.tensor([[[1.0, 0.0], [4.0, 2.0]]]))
    assert result.codes.tolist() == [[0, 1]]
    error = (1 + 0 + 0 + 4) / 4  # mean over both dimensions of both latents
    assert result.loss.item() == pytest.approx(error + 0.25 * error)
    assert result.stats["quantization_error"].item() == pytest.approx(error)
    assert result.latents.tolist() == [[[0.0, 0.0], [4.0, 0.0]]]


def test_a_normalized_latent_meets_the_code_of_its_direction() -> None:
    model = NearestQuantizer(NearestConfig(codebook_size=2, code_dim=2))
    model.codebook.data = torch.tensor([[0.0, 0.1], [50.0, 0.0]])
    result = model(torch.tensor([[[0.3, 0.4]]]))  # direction (0.6, 0.8)
    assert result.codes.item() == 0
    assert result.latents.tolist() == [[[0.0, 1.0]]]
    error = (0.36 + 0.04) / 2
    assert result.loss.item() == pytest.approx(1.25 * error)


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_the_encoder_gets_the_decoders_gradient_and_the_commitment(l2_normalize: bool) -> None:
    model = quantizer(l2_normalize=l2_normalize)
    upstream = latents(seed=2)
    x = latents().requires_grad_()
    result = model(x)
    ((result.latents * upstream).sum() + result.loss).backward()

    y = latents().requires_grad_()
    compared = y / y.norm(dim=-1, keepdim=True) if l2_normalize else y
    chosen = model.embed(result.codes).detach()
    commitment = 0.25 * 2 * (compared.detach() - chosen) / compared.numel()
    compared.backward(upstream + commitment)
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert commitment.abs().max() > 1e-4, "or else the comparison would not see the commitment"


def test_the_codebook_learns_from_its_own_term_only() -> None:
    model = quantizer(l2_normalize=False)
    x = latents()
    result = model(x.requires_grad_())
    ((result.latents * latents(seed=2)).sum() + result.loss).backward()
    expected = torch.zeros_like(model.codebook)
    pull = 2 * (model.embed(result.codes) - x).detach() / x.numel()
    expected.index_add_(0, result.codes.flatten(), pull.flatten(0, 1))
    assert model.codebook.grad is not None
    torch.testing.assert_close(model.codebook.grad, expected)
    unused = torch.ones(len(model.codebook), dtype=torch.bool)
    unused[result.codes.flatten()] = False
    assert unused.any()
    assert not model.codebook.grad[unused].any()
