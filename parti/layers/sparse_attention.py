"""Attention under DALL-E's and Parti's sparse masks over all states, by the kernel that computes least.

On a GPU, in training, torch's flex_attention skips the blocks of 128 x 128 scores that are fully masked; elsewhere
`attend` gets the dense mask. Over 256 text and 32 x 32 image states flex computes this share of the
blocks (causal attention: 0.55), and of Parti's decoder, image alone:

    row 0.34 / 0.23     column 0.27 / 0.13, in raster order 0.55 / 0.56     convolution 0.40 / 0.33

The states of a column are a row apart, so in raster order each block has some of them. As in the paper (arXiv
2102.12092, figure 11; papers.md C.2) column attention therefore runs on transposed image states, one column after the
other. It costs four copies, of queries, keys, values and result.

Legend: B batch, H heads, S = T + N states, T text states, N = h * w image states, d head width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from parti.layers.sparse_masks import MaskKind, image_mask, text_image_mask
from vqgan.layers.attend import attend

_MOST_BLOCKS = 0.5
"""Largest fraction of blocks for which flex_attention is used: less than plain causal attention computes. Chosen by
count, not by timing; short sequences of few blocks are above it."""

_LEAST_HEAD_WIDTH = 16
"""Smallest head width of flex_attention's kernels."""


class SparsePattern(NamedTuple):
    """Attention pattern: text attends to earlier text, image states to all text and to the image by `kind`.
    `text_length` 0 is Parti's decoder."""

    kind: MaskKind
    grid: tuple[int, int]
    kernel: int
    text_length: int = 0

    @property
    def length(self) -> int:
        """Number S of states."""
        return self.text_length + self.grid[0] * self.grid[1]


def attend_sparse(
    queries: Float[Tensor, "B H S d"],
    keys: Float[Tensor, "B H S d"],
    values: Float[Tensor, "B H S d"],
    pattern: SparsePattern,
) -> Float[Tensor, "B H S d"]:
    """Attention of all states of `pattern`, or of the first S of them, by whichever of the two ways below pays."""
    way = attend_by_blocks if flex_pays(queries, pattern) else attend_by_mask
    return way(queries, keys, values, pattern)


def flex_pays(queries: Float[Tensor, "B H S d"], pattern: SparsePattern) -> bool:
    """Returns whether to use flex_attention. Not without gradients: that would compile every kernel again."""
    return (
        queries.is_cuda
        and torch.is_grad_enabled()
        and queries.shape[2] == pattern.length
        and queries.shape[3] >= _LEAST_HEAD_WIDTH
        and computed_share(pattern) <= _MOST_BLOCKS
    )


def attend_by_mask(
    queries: Float[Tensor, "B H S d"],
    keys: Float[Tensor, "B H S d"],
    values: Float[Tensor, "B H S d"],
    pattern: SparsePattern,
) -> Float[Tensor, "B H S d"]:
    """Computes dense attention under the mask, for the first S states of the pattern."""
    if pattern.kind == "full":  # image states read all text, so it is plain causal attention
        return attend(queries, keys, values, causal=True)
    length = queries.shape[2]
    mask = dense_mask(pattern, queries.device)[:length, :length]
    return attend(queries, keys, values, mask[None, None])


def attend_by_blocks(
    queries: Float[Tensor, "B H S d"],
    keys: Float[Tensor, "B H S d"],
    values: Float[Tensor, "B H S d"],
    pattern: SparsePattern,
) -> Float[Tensor, "B H S d"]:
    """Computes attention with flex_attention: compiled on a GPU; uncompiled on a CPU, without a backward pass.

    Raises ValueError for a prefix of the states: a block mask covers all of them.
    """
    if queries.shape[2] != pattern.length:
        raise ValueError(
            f"a block mask is for all {pattern.length} states of its pattern, received {queries.shape[2]}; "
            "use attend_by_mask for a part"
        )
    flex = _compiled_flex_attention() if queries.is_cuda else cast(Callable[..., Tensor], flex_attention)
    blocks = block_mask(pattern, queries.device)
    if pattern.kind != "column":
        return flex(queries, keys, values, block_mask=blocks)
    there, back = _transposition(pattern, queries.device)
    return flex(queries[:, :, there], keys[:, :, there], values[:, :, there], block_mask=blocks)[:, :, back]


@functools.lru_cache(maxsize=16)
def dense_mask(pattern: SparsePattern, device: torch.device) -> Bool[Tensor, "S S"]:
    """Returns the mask, true where the row's state reads the column's; states in raster order."""
    image = image_mask(pattern.kind, pattern.grid, pattern.kernel, device)
    return text_image_mask(pattern.text_length, image)


@functools.lru_cache(maxsize=16)
def block_mask(pattern: SparsePattern, device: torch.device) -> BlockMask:
    """Returns the block mask for flex_attention; for a column pattern the image states are in column order."""
    return create_block_mask(mask_function(pattern), None, None, pattern.length, pattern.length, device=device)


@functools.lru_cache(maxsize=16)
def computed_share(pattern: SparsePattern) -> float:
    """Returns the fraction of the blocks of scores that flex_attention computes."""
    return 1 - block_mask(pattern, torch.device("cpu")).sparsity() / 100


def mask_function(pattern: SparsePattern) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Returns whether a query reads a key, from their indices: flex_attention's mask function.

    Computed by arithmetic, not from a table, so nothing is loaded. For a column pattern the image states are in column
    order. The first two arguments are batch and head, which are ignored.
    """
    text, (height, width), reach = pattern.text_length, pattern.grid, pattern.kernel // 2
    of_image: dict[MaskKind, Callable[[Tensor, Tensor], Tensor]] = {
        "row": lambda query, key: query - key <= width,
        "column": lambda query, key: query // height == key // height,
        # query - key = rows * width - columns, with rows up to reach and columns from -reach to reach.
        "convolution": lambda query, key: (
            (query - key <= reach * width + reach) & ((query - key + reach) % width <= 2 * reach)
        ),
        "full": lambda query, key: query >= key,
    }
    reads = of_image[pattern.kind]
    # No `def`: flex_attention counts the arguments, which the wrapper of a type-checked function hides.
    return lambda _batch, _head, query, key: (key <= query) & ((key < text) | reads(query - text, key - text))


@functools.lru_cache(maxsize=16)
def _transposition(pattern: SparsePattern, device: torch.device) -> tuple[Int64[Tensor, "S"], Int64[Tensor, "S"]]:
    """Returns the permutation of the image states to column order, and its inverse; text stays first."""
    (height, width), text = pattern.grid, pattern.text_length
    states = torch.arange(pattern.length, device=device)
    there = torch.cat([states[:text], states[text:].view(height, width).T.flatten()])
    back = torch.cat([states[:text], text + states[: height * width].view(width, height).T.flatten()])
    return there, back


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Shapes are the same in every step; kernels for dynamic shapes would be slower.
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=False))
