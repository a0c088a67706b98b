"""A copy of a generator for sampling, with its weights in the fastest layout.

Autoregressive decoding is memory-bound: every step reads all weights, so speed depends on their bytes and on how fast
the matrix product streams them. On a CPU with few rows torch's `F.linear` reaches a third of the bandwidth of oneDNN's
products on weights in its own layout (docs/log.md, 2026-11-21). Weights in bf16 take half the bytes, in int8, with a
scale for each output, a quarter.

The residual stream, norms, embeddings, attention on a CPU and the head, whose small differences decide the sample, stay
fp32 in all of them.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parti.models.generator import Generator
from vqgan.config.schema import ConfigError

Precision = Literal["fp32", "bf16", "int8"]
"""Precision of the weights that each step reads."""
_ROWS = 16
"""Number of rows that layouts are optimized for; fast from 1 to hundreds."""


def prepared(generator: Generator, precision: Precision = "fp32") -> Generator:
    """Returns a faster generator with the same outputs up to rounding. Modules that are not replaced are shared.

    It is for decoding steps only: do not train or save it, or use it after the weights have changed.
    Raises ConfigError for int8 on devices without a fast product (GPUs, and CPUs other than x86).
    """
    device = generator.device
    if precision == "int8" and not (device.type == "cpu" and _has_onednn()):
        raise ConfigError(f"precision int8 has no fast product on this {device.type} device; use bf16 or fp32")
    kept: dict[int, object] = {id(tensor): tensor for tensor in (*generator.parameters(), *generator.buffers())}
    layers: dict[int, object] = {
        id(layer): _LAYERS[precision](layer)
        for part in generator.decode_layers()
        for layer in part.modules()
        if type(layer) is nn.Linear
    }
    head = generator.image_head_layer()
    if type(head) is nn.Linear:
        layers[id(head)] = _fp32(head)
    # The memo of the deep copy holds all tensors, which are therefore shared, and the layers' replacements.
    return copy.deepcopy(generator, kept | layers)


class PackedLinear(nn.Module):
    """A linear layer on a CPU with its weight in oneDNN's own layout, fp32 or bf16; input and output are fp32."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        x = x.to(self._dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "").float()


class Int8Linear(nn.Module):
    """A linear layer on a CPU with its weight in int8, one scale for each output, and products in bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        # The product reads inputs in blocks of 16, so rows are zero-padded to a multiple.
        self._padding = -weight.shape[1] % 16
        self._weight = F.pad((weight / scale[:, None]).round().to(torch.int8), (0, self._padding))
        self._scale = scale.bfloat16()
        self._bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        rows = x.flatten(0, -2).bfloat16()
        rows = F.pad(rows, (0, self._padding)) if self._padding else rows
        y = torch.ops.aten._weight_int8pack_mm(rows, self._weight, self._scale).float()
        y = y if self._bias is None else y + self._bias
        return y.unflatten(0, x.shape[:-1])


class Bf16Linear(nn.Module):
    """A linear layer with its weight in bf16 and no special layout; output is bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = linear.weight.detach().bfloat16()
        self._bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return F.linear(x.bfloat16(), self._weight, self._bias)


def _fp32(linear: nn.Linear) -> nn.Module:
    packs = linear.weight.device.type == "cpu" and _has_onednn()
    return PackedLinear(linear, torch.float32) if packs else linear


def _bf16(linear: nn.Linear) -> nn.Module:
    # oneDNN has the product on every CPU, but packs bf16 weights only where the processor multiplies them (AVX-512).
    packs = linear.weight.device.type == "cpu" and _has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PackedLinear(linear, torch.bfloat16) if packs else Bf16Linear(linear)


_LAYERS = {"fp32": _fp32, "bf16": _bf16, "int8": Int8Linear}


def _has_onednn() -> bool:
    """Returns whether torch has oneDNN's products on packed weights."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
