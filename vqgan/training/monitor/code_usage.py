"""Chart of codebook usage: hits of each code, most used first."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_WIDTH, _HEIGHT = 512, 160
"""Of the bars; a line of text is above them."""
_HEAD = 24
_FONT_SIZE = 13
_BAR, _EVEN, _PAPER, _INK = (60, 110, 180), (200, 60, 50), (255, 255, 255), (48, 48, 54)


@runtime_checkable
class CountsCodes(Protocol):
    """A task with a codebook."""

    def code_counts(self) -> Int64[Tensor, "V"] | None:
        """Returns how often each code was hit in the last evaluation; None before the first."""
        ...


def usage_chart(counts: Int64[Tensor, "V"]) -> Image.Image:
    """Counts from the most used code to the least, as a logarithmic bar each; the line is that of even use.

    A healthy codebook is a slope about the line; a collapsed one a few bars at the left, and nothing.
    """
    ordered = by_use(counts)
    bars = torch.log1p(ordered.double())
    scale = (_HEIGHT - 1) / max(float(bars.max()), 1e-9)
    bottom = _HEAD + _HEIGHT - 1
    image = Image.new("RGB", (_WIDTH, bottom + 1), _PAPER)
    draw = ImageDraw.Draw(image)
    used = f"{int((counts > 0).sum())} of {len(counts)} used"
    title = f"codes by use, most used first (log); {used}; red line: even use"
    draw.text((4, _HEAD // 2), title, _INK, ImageFont.load_default(_FONT_SIZE), anchor="lm")
    for x in range(_WIDTH):
        height = round(float(bars[x * len(bars) // _WIDTH]) * scale)
        if height:
            draw.line((x, bottom + 1 - height, x, bottom), _BAR)
    even = bottom - round(float(torch.log1p(ordered.double().mean())) * scale)
    draw.line((0, even, _WIDTH - 1, even), _EVEN)
    return image


def by_use(counts: Int64[Tensor, "V"]) -> Int64[Tensor, "V"]:
    """Counts from the most used code to the least, in the host's memory."""
    return counts.cpu().sort(descending=True).values


def in_bins(counts: Int64[Tensor, "V"], most: int = 256) -> tuple[list[int], list[float]]:
    """`by_use` as a histogram over the codes' ranks: hits in each of at most so many bins, and the bins' edges."""
    parts = by_use(counts).tensor_split(min(most, len(counts)))
    edges = [0.0]
    for part in parts:
        edges.append(edges[-1] + len(part))
    return [int(part.sum()) for part in parts], edges
