"""Sparse attention by blocks, by a dense mask and by brute force are one; which of them is taken, and what it saves."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from parti.layers import sparse_attention
from parti.layers.sparse_attention import (
    SparsePattern,
    attend_by_blocks,
    attend_by_mask,
    attend_sparse,
    block_mask,
    computed_share,
    dense_mask,
    flex_pays,
    mask_function,
)
from parti.layers.sparse_masks import MaskKind, image_mask, text_image_mask

KINDS: list[MaskKind] = ["row", "column", "convolution", "full"]
CPU = torch.device("cpu")
# Torch tells that its plain form is slow; here it is wanted.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def paper(kind: MaskKind, text_length: int = 256) -> SparsePattern:
    return SparsePattern(kind, (32, 32), 11, text_length)


def draw(pattern: SparsePattern, head_width: int = 4, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, heads, pattern.length, head_width, generator=generator)
    return q, k, v


def read_states(pattern: SparsePattern, state: int) -> list[int]:
    """What one state reads, by the definitions on the grid."""
    text, (_, width) = pattern.text_length, pattern.grid
    if state < text:
        return list(range(state + 1))
    own, reach = state - text, pattern.kernel // 2
    image = {
        "row": range(max(0, own - width), own + 1),
        "column": range(own % width, own + 1, width),
        "convolution": [own + down * width + right for down in range(-reach, 1) for right in range(-reach, reach + 1)],
        "full": range(own + 1),
    }[pattern.kind]
    return list(range(text)) + sorted({text + other for other in image if 0 <= other <= own})


def by_brute_force(q: Tensor, k: Tensor, v: Tensor, pattern: SparsePattern) -> Tensor:
    """One softmax a state over the states that it reads, and over no others."""
    rows = []
    for state in range(pattern.length):
        seen = read_states(pattern, state)
        scores = (q[:, :, state, None] * k[:, :, seen]).sum(-1) / q.shape[-1] ** 0.5
        rows.append((scores.softmax(-1)[..., None] * v[:, :, seen]).sum(-2))
    return torch.stack(rows, dim=2)


def in_raster_order(pattern: SparsePattern) -> Tensor:
    """The mask function's mask with its states put back in raster order."""
    mask = create_mask(mask_function(pattern), None, None, pattern.length, pattern.length, "cpu")[0, 0]
    if pattern.kind != "column":
        return mask
    _, back = sparse_attention._transposition(pattern, CPU)
    return mask[back][:, back]


@pytest.mark.parametrize("text_length", [0, 5])
@pytest.mark.parametrize("grid", [(8, 8), (3, 7), (7, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_function_says_what_the_mask_says(kind: MaskKind, grid: tuple[int, int], text_length: int) -> None:
    for kernel in (1, 3, 5, 11) if kind == "convolution" else (11,):  # also wider than the grid
        pattern = SparsePattern(kind, grid, kernel, text_length)
        expected = text_image_mask(text_length, image_mask(kind, grid, kernel))
        assert torch.equal(in_raster_order(pattern), expected), kernel
        assert torch.equal(dense_mask(pattern, CPU), expected)


@pytest.mark.parametrize(("kind", "most"), [("row", 33), ("column", 32), ("convolution", 61), ("full", 1024)])
def test_the_papers_counts_hold_in_the_mask_function(kind: MaskKind, most: int) -> None:
    mask = in_raster_order(paper(kind, text_length=0))
    assert mask.sum(1).max() == most
    if kind == "convolution":
        query, key = mask.nonzero().T
        assert (query - key).max() == 165


@pytest.mark.parametrize(
    "pattern",
    [SparsePattern(kind, (8, 8), 5, text_length) for kind in KINDS for text_length in (0, 7)],
    ids=lambda pattern: f"{pattern.kind}-{pattern.text_length}",
)
def test_blocks_mask_and_brute_force_are_equal(pattern: SparsePattern) -> None:
    q, k, v = draw(pattern)
    expected = by_brute_force(q, k, v, pattern)
    torch.testing.assert_close(attend_by_mask(q, k, v, pattern), expected)
    torch.testing.assert_close(attend_by_blocks(q, k, v, pattern), expected)


@pytest.mark.parametrize("kind", ["row", "column", "convolution"])
def test_blocks_and_mask_are_equal_at_the_papers_size(kind: MaskKind) -> None:
    q, k, v = draw(paper(kind), heads=1)
    torch.testing.assert_close(attend_by_blocks(q, k, v, paper(kind)), attend_by_mask(q, k, v, paper(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_the_mask_are_those_of_brute_force(kind: MaskKind) -> None:
    pattern = SparsePattern(kind, (3, 4), 3, 3)
    results = []
    for way in (attend_by_mask, by_brute_force):
        leaves = [x.requires_grad_() for x in draw(pattern)]
        way(*leaves, pattern).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_states_do_not_wait_for_the_others(kind: MaskKind) -> None:
    pattern = SparsePattern(kind, (8, 8), 5, 7)
    q, k, v = draw(pattern)
    part = attend_sparse(q[:, :, :30], k[:, :, :30], v[:, :, :30], pattern)
    torch.testing.assert_close(part, attend_sparse(q, k, v, pattern)[:, :, :30])


def test_blocks_for_a_part_of_the_states_are_refused() -> None:
    q, k, v = (x[:, :, :30] for x in draw(SparsePattern("row", (8, 8), 5)))
    with pytest.raises(ValueError, match="for all 64 states of its pattern, received 30"):
        attend_by_blocks(q, k, v, SparsePattern("row", (8, 8), 5))


def test_the_share_of_blocks_that_the_docstring_gives() -> None:
    """Column in raster order has a state in each block up to the diagonal, as causal attention has: 55 of 100."""
    with_text = {kind: computed_share(paper(kind)) for kind in KINDS}
    assert with_text == pytest.approx({"row": 0.34, "column": 0.27, "convolution": 0.40, "full": 0.55})
    alone = {kind: computed_share(paper(kind, text_length=0)) for kind in KINDS}
    assert alone == pytest.approx({"row": 15 / 64, "column": 8 / 64, "convolution": 21 / 64, "full": 36 / 64})
    raster = dense_mask(paper("column"), CPU).view(10, 128, 10, 128).any(dim=3).any(dim=1)
    assert raster.sum() == 55


class OnGpu:
    """Stands for queries on a GPU."""

    is_cuda = True

    def __init__(self, states: int, head_width: int = 64) -> None:
        self.shape = (1, 1, states, head_width)


@pytest.mark.usefixtures("shapes_unchecked")
def test_blocks_are_taken_on_a_gpu_in_training_where_they_save_half() -> None:
    for kind, pays in {"row": True, "column": True, "convolution": True, "full": False}.items():
        assert flex_pays(OnGpu(1280), paper(kind)) is pays  # type: ignore[arg-type]
    row = paper("row")
    assert not flex_pays(OnGpu(1280, head_width=8), row), "heads too narrow"  # type: ignore[arg-type]
    assert not flex_pays(OnGpu(700), row), "a part of the states"  # type: ignore[arg-type]
    assert not flex_pays(OnGpu(80), SparsePattern("row", (8, 8), 5, 16)), "one block"  # type: ignore[arg-type]
    with torch.no_grad():
        assert not flex_pays(OnGpu(1280), row)  # type: ignore[arg-type]
    assert not flex_pays(draw(SparsePattern("row", (16, 16), 5))[0], SparsePattern("row", (16, 16), 5)), "CPU"


def test_a_mask_is_made_once_a_pattern() -> None:
    assert block_mask(paper("row"), CPU) is block_mask(SparsePattern("row", (32, 32), 11, 256), CPU)
    assert dense_mask(paper("row"), CPU) is dense_mask(paper("row"), CPU)
    assert dense_mask(paper("row"), CPU) is not dense_mask(paper("column"), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has no backward pass on a CPU")
@pytest.mark.parametrize("kind", ["row", "column", "convolution"])
def test_on_a_gpu_results_and_gradients_of_the_kernels_are_those_of_the_mask(kind: MaskKind) -> None:
    results = []
    for way in (attend_by_blocks, attend_by_mask):
        leaves = [x.cuda().requires_grad_() for x in draw(paper(kind), head_width=64)]
        result = way(*leaves, paper(kind))
        result.square().sum().backward()
        results.append([result, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*results, atol=5e-3, rtol=5e-3)  # the kernels may multiply in TF32
