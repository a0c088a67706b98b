"""Learned positions on another grid than the one that they were learned for."""

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
