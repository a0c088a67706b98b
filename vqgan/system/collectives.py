"""Collectives for codebooks; a single process returns its own values.

Each returns its value, and each is called by all processes at the same place.
"""

import torch
from torch import Tensor
from torch.distributed import ReduceOp


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of each element over all processes."""
    if not _are_many():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total, ReduceOp.SUM)
    return total


def all_reduce_mean(values: Tensor) -> Tensor:
    """Returns the mean of each element over all processes, with the gradient of this process's own values.

    What is computed from it has on each process the gradient that its values would have alone, at the mean's place: the
    average over the processes, which data-parallel training takes, is the true one.
    """
    if not _are_many():
        return values
    mean = all_reduce_sum(values.detach()) / torch.distributed.get_world_size()
    return values + (mean - values).detach()


def broadcast_from_rank_zero(values: Tensor) -> Tensor:
    """Returns the first process's `values`: sums on a GPU come in any order, so that equal work may round
    differently."""
    if not _are_many():
        return values
    received = values.clone()
    torch.distributed.broadcast(received, src=0)
    return received


def _are_many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
