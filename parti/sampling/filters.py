"""From logits to a distribution: guidance, temperature, top-k, top-p, in this order. Pure functions, fp32."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def guide(conditional: Float[Tensor, "B V"], unconditional: Float[Tensor, "B V"], scale: float) -> Float[Tensor, "B V"]:
    """Classifier-free guidance: u + scale * (c - u) (Parti, arXiv 2206.10789, section 2.2)."""
    return unconditional + scale * (conditional - unconditional)


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Set all but the k largest logits to -inf; ties with the k-th stay."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the smallest set of most likely codes whose probability reaches p; always at least one.

    Of equally likely codes the lower one is kept first. p = 1 keeps all.
    """
    if p >= 1:
        return logits  # a rounded sum can reach 1 before the last code
    ordered, order = logits.sort(descending=True, stable=True)
    cumulative = ordered.softmax(-1).cumsum(-1)
    before = F.pad(cumulative[:, :-1], (1, 0))  # mass of the codes that are more likely
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(drop, float("-inf"))


def draw(logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """One code a row by inversion: the first whose cumulative probability exceeds `uniform` in [0, 1).

    In float64 and from one number a row, so that a row's code does not depend on the other rows.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Scaled by the total, which rounding leaves a little off 1: never an index past the end.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
