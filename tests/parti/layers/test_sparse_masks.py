"""DALL-E's masks: against brute force by their definitions on the grid, the paper's counts."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from parti.layers.sparse_masks import (
    MaskKind,
    dalle_layer_kinds,
    distances_back,
    image_mask,
    text_image_mask,
)

KINDS: list[MaskKind] = ["row", "column", "convolution", "full"]
GRIDS = [(8, 8), (3, 7), (7, 3), (1, 6), (6, 1), (16, 16)]
PAPER = ((32, 32), 11)


def by_definition(kind: MaskKind, grid: tuple[int, int], kernel: int) -> Tensor:
    """The mask, state by state in coordinates."""
    height, width = grid
    mask = torch.zeros(height * width, height * width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            state = row * width + column
            if kind == "row":  # its row so far, and the rest of the row above, from its own column on
                seen = [(row, c) for c in range(column + 1)] + [(row - 1, c) for c in range(column, width)]
            elif kind == "column":
                seen = [(r, column) for r in range(row + 1)]
            elif kind == "convolution":  # a square around it; what leaves the grid sideways goes on in the next row
                reach = range(-(kernel // 2), kernel // 2 + 1)
                around = [(row + down) * width + column + right for down in reach for right in reach if down <= 0]
                seen = [divmod(other, width) for other in around if other <= state]
            else:
                seen = [divmod(other, width) for other in range(state + 1)]
            for r, c in seen:
                if r >= 0:
                    mask[state, r * width + c] = True
    return mask


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_definitions(kind: MaskKind, grid: tuple[int, int]) -> None:
    for kernel in (1, 3, 5, 11) if kind == "convolution" else (11,):
        mask = image_mask(kind, grid, kernel)
        assert torch.equal(mask, by_definition(kind, grid, kernel)), kernel
        assert not mask.triu(1).any()
        assert mask.diagonal().all()


@pytest.mark.parametrize(("kind", "most"), [("row", 33), ("column", 32), ("convolution", 61), ("full", 1024)])
def test_as_many_visible_states_as_in_the_paper(kind: MaskKind, most: int) -> None:
    assert image_mask(kind, *PAPER).sum(1).max() == most


def test_the_convolution_reaches_165_states_back() -> None:
    query, key = image_mask("convolution", *PAPER).nonzero().T
    assert (query - key).max() == 165
    assert max(distances_back("convolution", *PAPER)) == 165


def test_rows_columns_and_the_kernel_look_as_in_metric_11() -> None:
    generated = {
        "row": ["....", "..xx", "xxx.", "...."],
        "column": ["..x.", "..x.", "..x.", "...."],
        "convolution": ["....", ".xxx", ".xx.", "...."],
    }
    for kind, image in generated.items():
        mask = image_mask(kind, (4, 4), 3)[10].view(4, 4)  # type: ignore[arg-type]
        assert ["".join("x" if seen else "." for seen in row) for row in mask.tolist()] == image, kind


def test_the_papers_order_of_layers() -> None:
    kinds = dalle_layer_kinds(64)
    assert Counter(kinds) == {"row": 47, "column": 16, "convolution": 1}
    assert kinds[:8] == ["row", "column", "row", "row", "row", "column", "row", "row"]
    assert kinds[60:] == ["row", "column", "row", "convolution"]
    assert [layer for layer in range(1, 64) if kinds[layer - 1] == "column"] == list(range(2, 64, 4))
    assert dalle_layer_kinds(1) == ["convolution"]
    assert dalle_layer_kinds(4) == ["row", "column", "row", "convolution"]


def test_text_reads_text_and_images_read_all_text() -> None:
    image = image_mask("column", (2, 2), 3)
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 0, 1, 0, 0],
            [1, 1, 1, 1, 0, 1, 0],
            [1, 1, 1, 0, 1, 0, 1],
        ]
    )
    assert torch.equal(text_image_mask(3, image), expected.bool())
