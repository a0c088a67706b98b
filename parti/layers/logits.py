"""The layer that gives logits: fp32 sums and results, at the speed that the run's precision allows.

Thousands of logits decide what is drawn and how a model learns, so they are never rounded to 16 bits (Parti's outputs
are fp32 too, SPEC D.4). In a run in fp32 that is all. In one in bf16 or fp16 the factors may be rounded as everywhere
else, while products are summed and given in fp32: on a GPU that is its fast 16-bit product, on a CPU oneDNN's, which
takes half as long as torch's own fp32 product (docs/log.md, 2026-11-21).

Legend: D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def fp32_logits(head: nn.Module, states: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
    """`head` of fp32 `states`, in fp32. Where autocast is on and `head` is a plain layer, factors may be rounded."""
    device = states.device.type
    if not (torch.is_autocast_enabled(device) and type(head) is nn.Linear and head.bias is not None):
        with torch.autocast(device, enabled=False):
            return head(states)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        rows = _RoundedFactors.apply(states.flatten(0, -2), head.weight, head.bias, dtype)
        return rows.unflatten(0, states.shape[:-1])


class _RoundedFactors(torch.autograd.Function):
    """x W^T + b and its gradients, all in fp32, from factors that may be rounded to a 16-bit `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return _product(x, weight.t(), dtype) + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        return _product(gradient, weight, ctx.dtype), _product(gradient.t(), x, ctx.dtype), gradient.sum(0), None


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    if a.device.type == "cuda":
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32)
    with _onednn_may_round():
        return a @ b


@contextmanager
def _onednn_may_round() -> Iterator[None]:
    """Fp32 products by oneDNN, which rounds factors to bf16 where the CPU has matrix units for that."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
