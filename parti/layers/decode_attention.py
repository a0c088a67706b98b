"""Attention of a single query (one decoding step) to the cached keys.

Legend: B batch, H heads, K keys, d head width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def decode_attention(
    queries: Float[Tensor, "B H d"],
    keys: Float[Tensor, "B H K d"],
    values: Float[Tensor, "B H K d"],
    bias: Float[Tensor, "K"] | None,
) -> Float[Tensor, "B H d"]:
    """Computes softmax(k q / sqrt(d) + bias) v without copying the cache.

    Torch's fused kernel, except on a CPU: there two plain products stream a cache in 0.6 to 0.8 of its time
    (docs/log.md, 2026-11-21).
    """
    if queries.device.type != "cpu":
        mask = None if bias is None else bias[None, None, None]
        return F.scaled_dot_product_attention(queries[:, :, None], keys, values, attn_mask=mask)[:, :, 0]
    weights = torch.softmax(decode_scores(queries, keys, bias), dim=-1)
    return (weights[:, :, None] @ values)[:, :, 0]


def decode_scores(
    queries: Float[Tensor, "B H d"], keys: Float[Tensor, "B H K d"], bias: Float[Tensor, "K"] | None
) -> Float[Tensor, "B H K"]:
    """Computes k q / sqrt(d) + bias. Matrix times vector is faster here than vector times transposed matrix."""
    # A transposed row, not [..., None]: torch picks the kernel by strides, and the one for a column is slow.
    column = (queries * queries.shape[-1] ** -0.5)[:, :, None].transpose(-1, -2)
    scores = (keys @ column)[..., 0]
    return scores if bias is None else scores + bias
