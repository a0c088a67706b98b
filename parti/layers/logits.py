"""The output head: fp32 accumulation and logits, at the speed that the run's precision allows.

Logits are never rounded to 16 bits (Parti's outputs are fp32 too, papers.md D.4). In a bf16 run the factors may be
rounded as everywhere else, while products accumulate and are returned in fp32: on a GPU that is its fast 16-bit
product, on a CPU oneDNN's, which takes half as long as torch's own fp32 product (docs/log.md, 2026-11-21). In fp32
runs, and in fp16, whose range is too small for the gradients of a head, it is a plain layer.

Legend: D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def fp32_logits(head: nn.Module, states: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
    """Applies `head` to fp32 `states`, in fp32; under bf16 autocast the factors of a plain layer may be rounded."""
    device = states.device.type
    in_bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.bfloat16
    with torch.autocast(device, enabled=False):
        if not (in_bf16 and type(head) is nn.Linear and head.bias is not None):
            return head(states)
        rows = _RoundedFactors.apply(states.flatten(0, -2), head.weight, head.bias)
        return rows.unflatten(0, states.shape[:-1])


class _RoundedFactors(torch.autograd.Function):
    """x W^T + b and its gradients, all in fp32, from factors that may be rounded to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t()) + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        return _product(gradient, weight), _product(gradient.t(), x), gradient.sum(0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type == "cuda":
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    with _onednn_may_round():
        return a @ b


@contextmanager
def _onednn_may_round() -> Iterator[None]:
    """Fp32 products by oneDNN, which rounds factors to bf16 where the CPU has matrix units for that."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set up when the package is imported
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
