"""iGPT's palette: the colors of a data set as few as a vocabulary, found by k-means (Chen et al. 2020, section 3.1).

512 colors make "9-bit" pixels: a third as many tokens as one for each channel, and the images look the same.

Legend: M pixels, K colors.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_ROWS = 65536
"""Pixels compared with the palette at once."""


def nearest_colors(pixels: Float[Tensor, "M 3"], palette: Float[Tensor, "K 3"]) -> Int64[Tensor, "M"]:
    """The number of the nearest color, by squared distance."""
    return torch.cat([torch.cdist(part, palette).argmin(1) for part in pixels.split(_ROWS)])


def fit_palette(pixels: Float[Tensor, "M 3"], colors: int, *, seed: int = 0, rounds: int = 50) -> Float[Tensor, "K 3"]:
    """The centers of `colors` clusters of pixels in [-1, 1], by Lloyd's iterations from k-means++ starts.

    The pixels are counted by color first, so that flat images cost what their colors do. A cluster that loses its last
    pixel keeps its color. Raises ValueError where there are fewer different pixels than `colors`.
    """
    different, counts = pixels.unique(dim=0, return_counts=True)
    if len(different) < colors:
        raise ValueError(
            f"a palette of {colors} colors needs as many different pixels, received {len(different)}; ask for fewer "
            "colors or give more images"
        )
    generator = torch.Generator().manual_seed(seed)
    weights = counts.to(different.dtype)
    palette = _far_apart(different, weights, colors, generator)
    for _ in range(rounds):
        members = nearest_colors(different, palette)
        totals = torch.zeros(colors, dtype=different.dtype).index_add_(0, members, weights)
        sums = torch.zeros_like(palette).index_add_(0, members, different * weights[:, None])
        moved = torch.where(totals[:, None] > 0, sums / totals[:, None].clamp(min=1), palette)
        if torch.equal(moved, palette):
            break
        palette = moved
    return palette


def _far_apart(
    pixels: Float[Tensor, "M 3"], weights: Float[Tensor, "M"], colors: int, generator: torch.Generator
) -> Float[Tensor, "K 3"]:
    """k-means++: each start with a chance that grows with the squared distance to those before it."""
    chosen = [pixels[torch.multinomial(weights, 1, generator=generator)[0]]]
    distance = torch.full_like(weights, torch.inf)
    while len(chosen) < colors:
        distance = torch.minimum(distance, (pixels - chosen[-1]).square().sum(1))
        chosen.append(pixels[torch.multinomial(weights * distance, 1, generator=generator)[0]])
    return torch.stack(chosen)
