"""Looks up a row of a table by a position that is a number or a tensor."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def lookup(table: Shaped[Tensor, "N *X"], position: int | Tensor) -> Shaped[Tensor, "1 *X"]:
    """Returns row `position` (a number, or a tensor of zero or one dimension with one entry) as a table of one row."""
    if isinstance(position, int):
        return table[position : position + 1]
    # Not table[position]: a zero-dimensional index is read by the host, which synchronizes, and cannot be
    # captured in a CUDA graph.
    return torch.index_select(table, 0, position.reshape(1))
