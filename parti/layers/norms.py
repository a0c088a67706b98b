"""Norms of the residual stream by kind, and the norm of queries and keys.

Legend: d head width.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn, ones

NormKind = Literal["layer", "rms"]
"""layer: centered, scaled and shifted (LayerNorm, arXiv 1607.06450); rms: scaled alone (RMSNorm, arXiv 1910.07467)."""

EPS = 1e-5
"""Added to the mean square, for every kind. torch's RMSNorm would take the dtype's epsilon, 1e-7 in fp32."""

_NORMS: dict[NormKind, Callable[[int], nn.Module]] = {
    "layer": lambda width: nn.LayerNorm(width, EPS),
    "rms": lambda width: nn.RMSNorm(width, EPS),
}


def norm(width: int, kind: NormKind = "layer") -> nn.Module:
    """Returns the norm of vectors of `width`."""
    return _NORMS[kind](width)


class HeadNorm(nn.Module):
    """RMSNorm of each head's queries, or keys, with one learned gain (d) for all heads: QK-norm.

    It bounds the attention logits, whose growth makes large models diverge (ViT-22B, arXiv 2302.05442, section 2,
    there with LayerNorm; RMSNorm as in arXiv 2403.03206, section 5.3.2). Initially the root mean square is 1.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(ones(head_width))

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Normalizes in fp32, because its input may exceed fp16; the result has the dtype of `x`."""
        return F.rms_norm(x.float(), self.gain.shape, self.gain.float(), EPS).to(x.dtype)
