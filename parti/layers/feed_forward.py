"""The feed-forward of a block, by kind."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FeedForwardKind = Literal["relu", "gelu", "swiglu"]
"""relu: Parti's (arXiv 2206.10789, figure 5); gelu: DALL-E's; swiglu: gated (arXiv 2002.05202)."""


class SwiGLU(nn.Module):
    """Gated feed-forward (SiLU(x G) * x V) O, with as many weights as two matrices of hidden width `mlp_width`.

    That is 2/3 of `mlp_width` (arXiv 2002.05202, section 2), rounded up to a multiple of 8 for tensor cores.
    Departure from the paper: biases, as in the other kinds.
    """

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        hidden = -(-2 * mlp_width // (3 * 8)) * 8
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


_FEED_FORWARDS: dict[FeedForwardKind, Callable[[int, int], nn.Module]] = {
    "relu": lambda width, hidden: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)),
    "gelu": lambda width, hidden: nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
    "swiglu": SwiGLU,
}


def feed_forward(width: int, mlp_width: int, kind: FeedForwardKind = "relu") -> nn.Module:
    """Builds the feed-forward width -> mlp_width -> width; swiglu has another hidden width but as many weights."""
    return _FEED_FORWARDS[kind](width, mlp_width)
