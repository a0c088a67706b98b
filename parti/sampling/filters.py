"""From logits to a distribution: guidance, temperature, top-k, top-p, in this order. Pure functions, fp32.

On a CPU NumPy finds and orders values: with vector instructions, and without telling where each came from, it is up
to forty times as fast as torch (docs/log.md, 2026-11-21).
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_SMALL, _LEAST = 1e-3, 1e-30
"""Temperatures: below the first, logits are divided otherwise; the second is the least that divides."""


def apply_guidance(
    conditional: Float[Tensor, "B V"], unconditional: Float[Tensor, "B V"], scale: float
) -> Float[Tensor, "B V"]:
    """Classifier-free guidance: u + scale * (c - u) (Parti, arXiv 2206.10789, section 2.2)."""
    return unconditional + scale * (conditional - unconditional)


def temper(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """Logits over a positive temperature, up to a number a row, which changes no probability.

    A small one would divide beyond fp32: what is divided then is the distance to the largest logit, which stays 0.
    Below 1e-30 a temperature is as 1e-30: the most likely code has all probability, unless another is as likely.
    """
    if temperature >= _SMALL:
        return logits / temperature
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, _LEAST)


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Set all but the k largest logits to -inf; ties with the k-th stay."""
    k = min(k, logits.shape[-1])
    if logits.device.type == "cpu":
        threshold = torch.from_numpy(np.partition(logits.numpy(force=True), -k)[:, -k])
    else:
        threshold = logits.topk(k).values[:, -1]
    return logits.masked_fill(logits < threshold[:, None], float("-inf"))


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the smallest set of most likely codes whose probability reaches p; always at least one.

    Of equally likely codes the lower one is kept first. p = 1 keeps all.
    """
    if p >= 1:
        return logits  # a rounded sum can reach 1 before the last code
    ordered = _descending(logits)
    cumulative = ordered.softmax(-1).cumsum(-1)
    count = 1 + (cumulative[:, :-1] < p).sum(-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    drop = logits < least
    surplus = logits.shape[-1] - drop.sum(-1, keepdim=True) - count  # of those that tie with the least
    if logits.device.type != "cpu" or surplus.any():  # ties are rare, but asking a GPU would wait for it
        tied = logits == least
        drop |= tied & (tied.cumsum(-1) > tied.sum(-1, keepdim=True) - surplus)
    return logits.masked_fill(drop, float("-inf"))


def draw(logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """One code a row by inversion: the first whose cumulative probability exceeds `uniform` in [0, 1).

    In float64 and from one number a row, so that a row's code does not depend on the other rows.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Scaled by the total, which rounding leaves a little off 1: never an index past the end.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _descending(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Each row's values, largest first."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.sort(logits.numpy(force=True))).flip(-1)
    return logits.sort(descending=True).values
