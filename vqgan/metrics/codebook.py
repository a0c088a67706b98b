"""How much of a codebook is in use, from how often each code was hit."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def usage(counts: Int64[Tensor, "V"]) -> Float[Tensor, ""]:
    """Share of the codes that were hit at least once over the whole set (SPEC H, definition b), in [0, 1]."""
    return (counts > 0).float().mean()


def perplexity(counts: Int64[Tensor, "V"]) -> Float[Tensor, ""]:
    """exp of the entropy of the code distribution: the number of equally likely codes with that entropy."""
    share = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-(share * share.clamp(min=1e-300).log()).sum()).float()
