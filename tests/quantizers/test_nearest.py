"""The nearest-neighbour quantiser: the same codes as a brute-force search, and the gradients of the paper."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.quantizers import NearestConfig, NearestQuantizer, nearest
from vqgan.quantizers.nearest import nearest_codes


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


@pytest.mark.parametrize(("elements", "code_tile"), [(1 << 22, 8192), (64, 16), (7, 3), (1, 1)])
def test_the_lowest_index_wins_a_tie_in_any_tiling(
    monkeypatch: pytest.MonkeyPatch, elements: int, code_tile: int
) -> None:
    monkeypatch.setattr(nearest, "_TILE_ELEMENTS", elements)
    monkeypatch.setattr(nearest, "_TILE_CODES", code_tile)
    # Small whole numbers: scores are exact, so equal distances are equal to the bit. Every code is there twice.
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-3, 4, (25, 3), generator=generator).float().repeat(2, 1)
    vectors = torch.randint(-3, 4, (60, 3), generator=generator).float()
    distances = (vectors[:, None] - codebook).square().sum(-1)
    lowest = (distances == distances.min(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(nearest_codes(vectors, codebook), lowest)
    assert lowest.max() < 25


def test_there_is_never_a_matrix_of_vectors_times_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    addmm = torch.addmm

    def watched(*arguments: Any, **options: Any) -> Tensor:
        nonlocal largest
        result = addmm(*arguments, **options)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", watched)
    vectors, codebook = torch.randn(3000, 4), torch.randn(9000, 4)
    codes = nearest_codes(vectors, codebook)
    assert 0 < largest <= nearest._TILE_ELEMENTS < len(vectors) * len(codebook) / 6
    assert torch.equal(codes[-20:], torch.cdist(vectors[-20:], codebook).argmin(-1))


def test_latents_that_are_not_numbers_still_get_codes_that_exist() -> None:
    vectors = torch.full((3, 4), float("nan"))
    assert nearest_codes(vectors, torch.randn(5, 4)).tolist() == [0, 0, 0]


def test_the_losses_are_the_formulas() -> None:
    model = NearestQuantizer(NearestConfig(codebook_size=2, code_dim=2, l2_normalize=False, commitment_weight=0.25))
    model.codebook.data = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    result = model(torch.tensor([[[1.0, 0.0], [4.0, 2.0]]]))
    assert result.codes.tolist() == [[0, 1]]
    error = (1 + 0 + 0 + 4) / 4  # mean over both dimensions of both latents
    assert result.loss.item() == pytest.approx(error + 0.25 * error)
    assert result.stats["quantization_error"].item() == pytest.approx(error)
    assert result.latents.tolist() == [[[0.0, 0.0], [4.0, 0.0]]]


def test_a_normalised_latent_meets_the_code_of_its_direction() -> None:
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


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_embed_gives_what_the_decoder_was_trained_on(l2_normalize: bool) -> None:
    model = quantizer(l2_normalize=l2_normalize)
    result = model(latents())
    assert torch.equal(model.embed(result.codes), result.latents)


def test_autocast_changes_nothing() -> None:
    model = quantizer(codes=1000)
    plain = model(latents(4, 256))
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(latents(4, 256))
        codes = model.encode(latents(4, 256))
        embedded = model.embed(codes)
    assert torch.equal(plain.codes, cast.codes)
    assert torch.equal(plain.codes, codes)
    assert torch.equal(plain.latents, cast.latents)
    assert torch.equal(plain.loss, cast.loss)
    assert cast.latents.dtype == embedded.dtype == torch.float32


def test_half_precision_latents_are_searched_in_fp32() -> None:
    model = quantizer(codes=1000)
    rounded = latents(4, 256).bfloat16()
    assert torch.equal(model(rounded).codes, model(rounded.float()).codes)
    assert model(rounded).latents.dtype == torch.float32
