"""Logits: the plain layer in fp32 runs; under autocast still summed and given in fp32, and so are the gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from parti.layers.logits import fp32_logits

pytestmark = pytest.mark.threads


def case() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(64, 300), torch.randn(3, 5, 64, requires_grad=True), torch.randn(3, 5, 300)


def gradients(head: nn.Linear, states: Tensor, upstream: Tensor, low: bool) -> tuple[Tensor, ...]:
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        logits = fp32_logits(head, states)
    assert logits.dtype == torch.float32
    return (logits, *torch.autograd.grad(logits, (states, head.weight, head.bias), upstream))


def test_without_autocast_it_is_the_layer_itself() -> None:
    head, states, upstream = case()
    logits, *_ = gradients(head, states, upstream, low=False)
    assert torch.equal(logits, head(states))


def test_under_autocast_nothing_is_rounded_to_16_bits_but_factors() -> None:
    head, states, upstream = case()
    exact = gradients(head, states, upstream, low=False)
    for found, expected in zip(gradients(head, states, upstream, low=True), exact, strict=True):
        assert found.dtype == torch.float32
        # Factors of 8 bits and 64 to 300 summands of either sign: far below the step of a 16-bit result at its largest.
        assert (found - expected).abs().max() < 2**-8 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(states)
    assert rounded.dtype == torch.bfloat16  # what it is there to avoid


def test_the_setting_of_products_is_put_back() -> None:
    head, states, upstream = case()
    before = torch.backends.mkldnn.matmul.fp32_precision
    gradients(head, states, upstream, low=True)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("low", [True, False])
def test_gradients_are_those_of_finite_differences(low: bool) -> None:
    head, states, upstream = case()
    _, dx, dw, db = gradients(head, states, upstream, low)
    assert torch.allclose(dx, upstream @ head.weight, atol=0.05)
    assert torch.allclose(dw, upstream.flatten(0, 1).T @ states.flatten(0, 1), atol=0.2)
    assert torch.allclose(db, upstream.sum((0, 1)), atol=1e-4)


class Products(TorchDispatchMode):
    """Notes at each matrix product whether its factors may be rounded to bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.may_round: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.may_round.append(torch.backends.mkldnn.matmul.fp32_precision == "bf16")
        return func(*args, **(kwargs or {}))


class Wrapped(nn.Linear):
    """A layer that does more than a plain one, such as an adapter's."""


@pytest.mark.parametrize(
    ("dtype", "kind", "rounds"),
    [
        (torch.bfloat16, nn.Linear, True),
        (torch.bfloat16, Wrapped, False),
        (torch.float16, nn.Linear, False),
        (None, nn.Linear, False),
    ],
)
def test_factors_are_rounded_in_bf16_runs_alone_and_in_all_three_products(
    dtype: torch.dtype | None, kind: type[nn.Linear], rounds: bool
) -> None:
    _, states, upstream = case()
    head = kind(64, 300)
    with Products() as products:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = fp32_logits(head, states)
        logits.backward(upstream)
    assert logits.dtype == torch.float32
    assert products.may_round == [rounds] * 3, "forward, and the gradients of states and weight"
    if not rounds:
        assert torch.equal(logits, head(states))


def test_a_head_without_a_bias_is_the_plain_layer() -> None:
    head, states, _ = nn.Linear(64, 300, bias=False), *case()[1:]
    expected = head(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fp32_logits(head, states), expected)
