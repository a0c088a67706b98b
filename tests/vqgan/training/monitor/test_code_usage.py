"""The chart of a codebook's use, and what a histogram has of it."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from vqgan.training.monitor.code_usage import by_use, in_bins, usage_chart

PAPER = (255, 255, 255)


def bars(image: Image.Image) -> list[int]:
    """Height of each column's bar: pixels of its color."""
    return [sum(image.getpixel((x, y)) == (60, 110, 180) for y in range(image.height)) for x in range(image.width)]


def test_bars_go_from_the_most_used_code_to_those_that_nobody_uses() -> None:
    counts = torch.zeros(1024, dtype=torch.int64)
    counts[torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:256]] = torch.arange(1, 257) ** 2
    heights = bars(usage_chart(counts))
    quarter = len(heights) // 4
    # The line of even use hides a pixel of a bar.
    assert all(later <= earlier + 1 for earlier, later in pairwise(heights))
    assert min(heights[:quarter]) > 0
    assert max(heights[quarter:]) == 0


def test_the_title_says_how_many_codes_are_used_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def noted(canvas: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *more: Any, **options: Any) -> None:
        written.append(text)
        draw(canvas, place, text, *more, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    counts = torch.ones(262_144, dtype=torch.int64)
    counts[:144] = 0
    image = usage_chart(counts)
    assert written == ["codes by use, most used first (log); 262000 of 262144 used; red line: even use"]
    # The highest bar begins below the text, which ends before the right edge.
    head = image.crop((0, 0, image.width, image.height - max(bars(image)) - 1))
    assert len(set(head.get_flattened_data())) > 2
    assert set(head.crop((head.width - 4, 0, head.width, head.height)).get_flattened_data()) == {PAPER}


def test_an_unused_codebook_is_an_empty_chart() -> None:
    assert max(bars(usage_chart(torch.zeros(8, dtype=torch.int64)))) == 0


def test_bins_hold_every_hit_in_the_order_of_use() -> None:
    counts = torch.randint(0, 50, (1000,), generator=torch.Generator().manual_seed(0))
    hits, edges = in_bins(counts, most=64)
    assert sum(hits) == int(counts.sum())
    assert (len(hits), edges[0], edges[-1]) == (64, 0.0, 1000.0)
    first = int(edges[1])
    assert hits[0] == int(by_use(counts)[:first].sum())
