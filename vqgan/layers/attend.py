"""Scaled dot-product attention, by the fastest kernel for the device.

Legend: B batch, H heads, Q queries, K keys, d head width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SHORT = 256 * 256
"""Largest number of queries times keys for the plain form on a CPU."""


def attend(
    queries: Float[Tensor, "B H Q d"],
    keys: Float[Tensor, "B H K d"],
    values: Float[Tensor, "B H K d"],
    mask: Bool[Tensor, "#B #H #Q K"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B H Q d"]:
    """softmax(q k^T / sqrt(d)) v over the keys where `mask` is true, with `causal` those up to the query's position.

    Torch's fused kernel, except for training on short sequences on a CPU: there the fused kernel's backward pass
    takes several times as long as three plain matrix operations (docs/log.md, 2026-11-21).
    """
    short = queries.shape[-2] * keys.shape[-2] <= SHORT
    if not (queries.device.type == "cpu" and torch.is_grad_enabled() and short):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
    if causal:
        mask = torch.ones(queries.shape[-2], keys.shape[-2], dtype=torch.bool).tril()
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    # In bf16 too: the softmax kernel accumulates in fp32 and rounds once.
    return torch.softmax(scores, dim=-1) @ values
