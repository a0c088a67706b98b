"""Norms by kind against their formulas; the norm of queries and keys."""

import pytest
import torch

from parti.layers.norms import EPS, HeadNorm, norm

pytestmark = pytest.mark.threads


def numbers(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("length", [1.0, 1e-3])  # the second is of the order of eps
def test_layer_and_rms_are_the_papers_formulas(length: float) -> None:
    x = length * numbers(4, 16)
    centered = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(norm(16)(x), centered / (centered.square().mean(-1, keepdim=True) + EPS).sqrt())
    torch.testing.assert_close(norm(16, "rms")(x), x / (x.square().mean(-1, keepdim=True) + EPS).sqrt())
    assert [name for name, _ in norm(16, "rms").named_parameters()] == ["weight"]


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_small_vectors_are_judged_by_the_same_eps_in_every_precision(kind: str) -> None:
    x = 0.05 * numbers(4, 16)
    reference = norm(16, kind)(x)  # type: ignore[arg-type]
    low = norm(16, kind).bfloat16()(x.bfloat16())  # type: ignore[arg-type]
    torch.testing.assert_close(low.float(), reference, atol=0.03, rtol=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(16, kind)(x), reference)  # type: ignore[arg-type]


def test_head_norm_is_rms_norm_over_the_head_with_one_gain_for_all_heads() -> None:
    module = HeadNorm(8)
    with torch.no_grad():
        module.gain.copy_(torch.arange(1.0, 9.0))
    x = numbers(2, 3, 5, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * torch.arange(1.0, 9.0)
    torch.testing.assert_close(module(x), expected)
    assert sum(parameter.numel() for parameter in module.parameters()) == 8
    torch.testing.assert_close(module(100 * x), module(x), msg="the length of a query does not matter")


def test_head_norm_works_in_fp32_and_answers_in_the_input_dtype() -> None:
    x = (200 * numbers(2, 3, 5, 8)).half()  # squares that overflow fp16
    with torch.autocast("cpu", torch.bfloat16):
        normed = HeadNorm(8)(x)
    assert normed.dtype == torch.float16
    assert torch.equal(normed, HeadNorm(8)(x.float()).half()), "rounded once"
    module = HeadNorm(8).bfloat16()
    assert module(x.bfloat16()).dtype == torch.bfloat16
