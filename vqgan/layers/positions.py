"""Learned positions on another grid than the one that they were learned for."""

import math
from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def positions_on(
    positions: Float[Tensor, "N D"], learned: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "M D"]:
    """Returns positions of the `learned` grid (h, w; N = h * w, row-major), bicubically interpolated to `grid`.

    Source: ViT, 2010.11929, section 3.2.
    """
    if grid == learned:
        return positions
    # fp32, which autocast leaves alone here: bicubic weights are negative in places, and half precision shows it.
    image = rearrange(positions.float(), "(h w) d -> 1 d h w", h=learned[0])
    resized = functional.interpolate(image, grid, mode="bicubic", align_corners=False, antialias=True)
    return rearrange(resized, "1 d h w -> (h w) d")


def grid_resizer(grid: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor | None]:
    """A function from positions (N, D) of another grid of the same proportions, and those of `grid`, to new ones of
    `grid`; None where N is no such grid, or D differs."""

    def resize(theirs: Tensor, ours: Tensor) -> Tensor | None:
        height, width = grid
        scale = math.sqrt(len(theirs) / (height * width))
        learned = (round(height * scale), round(width * scale))
        if learned[0] * learned[1] != len(theirs) or theirs.shape[1:] != ours.shape[1:]:
            return None
        return positions_on(theirs, learned, grid)

    return resize


def line_resizer(theirs: Tensor, ours: Tensor) -> Tensor | None:
    """Positions (N, D) along one side of a grid, linearly interpolated to as many as `ours`; None where D differs."""
    if theirs.shape[1:] != ours.shape[1:]:
        return None
    resized = functional.interpolate(theirs.float().T[None], len(ours), mode="linear", align_corners=False)
    return resized[0].T
