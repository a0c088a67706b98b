"""Rotary positions for codes on a grid (RoFormer, arXiv 2104.09864, section 3.2, once for rows and once for columns).

A pair of a head's components is rotated by an angle proportional to the position, so that the score between two image
states depends only on their relative row and column. The first half of the frequencies rotates by the row, the second
by the column, as in LlamaGen (arXiv 2406.06525, section 2.2); the base is RoFormer's 10,000.

Text states are not rotated; their positions are the learned ones. So in a decoder-only model the keys of a text do not
depend on the image state that reads them.

Legend: B batch, H heads, S states (text, then image), d head width, N = h * w image states.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from parti.layers.lookup import lookup


class RotaryPositions(nn.Module):
    """Rotates queries and keys (not values) by the position of their image state; shared by all layers of a model.

    `text_length` is the number of states before the image, which are not rotated. With QK-norm, normalize first: a gain
    after the rotation would make scores depend on absolute positions.
    """

    cos: Float[Tensor, "S half"]
    sin: Float[Tensor, "S half"]

    def __init__(self, grid: tuple[int, int], head_width: int, text_length: int = 0, base: float = 10_000.0) -> None:
        super().__init__()
        check_head_width(head_width)
        self.grid, self.head_width, self.text_length, self.base = grid, head_width, text_length, base
        for name, table in zip(("cos", "sin"), self._tables(torch.get_default_device()), strict=True):
            self.register_buffer(name, table, persistent=False)

    def rotate(
        self, x: Float[Tensor, "*rows d"], position: int | Int[Tensor, ""] | None = None
    ) -> Float[Tensor, "*rows d"]:
        """Rotates queries or keys (B, H, S, d) of a prefix of the states: text, then image. Or with `position`, 0 to N
        - 1, those of one image state: (B, H, d) or (B, H, 1, d). Computed in fp32 and returned in the input's dtype."""
        if position is None:
            cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        else:
            state = self.text_length + position
            cos, sin = lookup(self.cos, state), lookup(self.sin, state)
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        height, width = self.grid
        # fp64 on the CPU, so that large angles are not rounded before the cosine; not every device has fp64.
        steps = torch.arange(self.head_width // 4, dtype=torch.float64, device="cpu") / (self.head_width // 4)
        frequencies = self.base**-steps
        by_row = torch.arange(height, device="cpu")[:, None, None] * frequencies
        by_column = torch.arange(width, device="cpu")[None, :, None] * frequencies
        both = torch.cat([by_row.expand(height, width, -1), by_column.expand(height, width, -1)], dim=-1)
        angles = torch.cat([both.new_zeros(self.text_length, self.head_width // 2), both.flatten(0, 1)])
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def _apply(self, *args: Any, **kwargs: Any) -> "RotaryPositions":
        # The angles stay fp32 in a bf16 model, and are computed when a model leaves the meta device.
        super()._apply(*args, **kwargs)
        self.cos, self.sin = self._tables(self.cos.device)
        return self


def check_head_width(head_width: int) -> None:
    """Raises ValueError unless rows and columns can each rotate pairs of a head's components."""
    if head_width % 4:
        raise ValueError(
            f"rotary positions turn pairs by the row and pairs by the column, so width / heads is a multiple of 4, "
            f"received {head_width}; choose other heads, or set rotary to false"
        )
