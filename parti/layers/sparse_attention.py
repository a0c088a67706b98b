"""Attention under DALL-E's and Parti's sparse masks, over all states at once, by the kernel that computes least.

On a GPU, in training, torch's flex_attention leaves out the blocks of 128 x 128 scores of which a mask wants none;
elsewhere the mask goes to `attend` whole. Over 256 text and 32 x 32 image states flex computes this share of the
blocks (causal attention: 0.55), and of Parti's decoder, image alone:

    row 0.34 / 0.23     column 0.27 / 0.13, in raster order 0.55 / 0.56     convolution 0.40 / 0.33

A column's states lie a row apart, so in raster order each block has some of them. As in the paper (arXiv 2102.12092,
figure 11; papers.md C.2) column attention therefore runs on transposed image states, one column after the other. It
costs four copies, of queries, keys, values and result.

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
"""Share of the blocks up to which flex_attention is taken: less than causal attention without a mask computes. By
count, not by timing; short sequences, which are a few blocks, stay above it."""

_LEAST_HEAD_WIDTH = 16
"""flex_attention's kernels take no narrower heads."""


class SparsePattern(NamedTuple):
    """Which states read which: text reads the text before it, image states all text and of the image what `kind`
    says. `text_length` 0 is Parti's decoder."""

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
    """Whether flex_attention is to be taken. Not without gradients: that would compile every kernel once more."""
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
    """Dense attention under the mask; for the first S states where there are fewer than the pattern has."""
    if pattern.kind == "full":  # image states read all text, so the whole is causal and needs no mask
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
    """By flex_attention: compiled on a GPU; on a CPU as torch's plain form, which has no backward pass.

    Raises ValueError for a part of the states: a block mask is made for all of them.
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
    """True where the row's state reads the column's; states in raster order."""
    image = image_mask(pattern.kind, pattern.grid, pattern.kernel, device)
    return text_image_mask(pattern.text_length, image)


@functools.lru_cache(maxsize=16)
def block_mask(pattern: SparsePattern, device: torch.device) -> BlockMask:
    """The pattern for flex_attention; of a column pattern the image states stand column by column."""
    return create_block_mask(mask_function(pattern), None, None, pattern.length, pattern.length, device=device)


@functools.lru_cache(maxsize=16)
def computed_share(pattern: SparsePattern) -> float:
    """Share of the blocks of scores that flex_attention computes."""
    return 1 - block_mask(pattern, torch.device("cpu")).sparsity() / 100


def mask_function(pattern: SparsePattern) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query reads a key, from their indices: what the kernel asks inside a block that is partly wanted.

    In arithmetic of constants, not by a table: nothing is loaded. Of a column pattern the image states stand column
    by column. The first two arguments are batch and head, which are all alike.
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
    # No `def`: flex_attention counts a function's arguments, which the wrapper of a type-checked one hides.
    return lambda _batch, _head, query, key: (key <= query) & ((key < text) | reads(query - text, key - text))


@functools.lru_cache(maxsize=16)
def _transposition(pattern: SparsePattern, device: torch.device) -> tuple[Int64[Tensor, "S"], Int64[Tensor, "S"]]:
    """Indices that put the image states column by column, and those that put them back; text stays in front."""
    (height, width), text = pattern.grid, pattern.text_length
    states = torch.arange(pattern.length, device=device)
    there = torch.cat([states[:text], states[text:].view(height, width).T.flatten()])
    back = torch.cat([states[:text], text + states[: height * width].view(width, height).T.flatten()])
    return there, back


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Shapes are the same in every step; kernels for any shape would be slower.
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=False))
