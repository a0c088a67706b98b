"""From logits to a distribution: guidance, temperature, top-k, top-p, in this order. Pure functions, fp32.

On a CPU NumPy selects and sorts the values: vectorized and without indices, it is up to forty times as fast as torch
(docs/log.md, 2026-11-21).
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_SMALL, _LEAST = 1e-3, 1e-30
"""Temperatures: below the first, logits are shifted before the division; the second is the smallest that is used."""


def apply_guidance(
    conditional: Float[Tensor, "B V"], unconditional: Float[Tensor, "B V"], scale: float
) -> Float[Tensor, "B V"]:
    """Applies classifier-free guidance: u + scale * (c - u) (Parti, arXiv 2206.10789, section 2.2)."""
    return unconditional + scale * (conditional - unconditional)


def temper(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """Divides logits by a positive temperature, up to a constant for each row, which does not change probabilities.

    A small temperature would overflow fp32, so the largest logit is subtracted first. Temperatures below 1e-30 count as
    1e-30: the most probable code gets all probability, unless another one is equally probable.
    """
    if temperature >= _SMALL:
        return logits / temperature
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, _LEAST)


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Sets all but the k largest logits to -inf; ties with the k-th are kept."""
    k = min(k, logits.shape[-1])
    if logits.device.type == "cpu":
        threshold = torch.from_numpy(np.partition(logits.numpy(force=True), -k)[:, -k])
    else:
        threshold = logits.topk(k).values[:, -1]
    return logits.masked_fill(logits < threshold[:, None], float("-inf"))


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keeps the smallest set of most probable codes whose total probability reaches p, at least one code.

    Of equally probable codes the lower one is kept first. p = 1 keeps all.
    """
    if p >= 1:
        return logits  # a rounded sum can reach 1 before the last code
    ordered = _descending(logits)
    cumulative = ordered.softmax(-1).cumsum(-1)
    count = 1 + (cumulative[:, :-1] < p).sum(-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    drop = logits < least
    surplus = logits.shape[-1] - drop.sum(-1, keepdim=True) - count  # ties with the least probable kept code
    if logits.device.type != "cpu" or surplus.any():  # ties are rare, but checking on a GPU would synchronize
        tied = logits == least
        drop |= tied & (tied.cumsum(-1) > tied.sum(-1, keepdim=True) - surplus)
    return logits.masked_fill(drop, float("-inf"))


def sample_codes(logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """Samples one code per row by the inverse CDF: the first whose cumulative probability exceeds `uniform` in [0, 1).

    Uses float64 and one random number per row, so that a row's code does not depend on the other rows.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Scaled by the total, which is not exactly 1 after rounding, so the index is never past the end.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _descending(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Returns each row's values, largest first."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.sort(logits.numpy(force=True))).flip(-1)
    return logits.sort(descending=True).values
