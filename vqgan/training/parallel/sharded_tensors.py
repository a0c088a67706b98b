"""Tensors that are divided between processes (DTensor), and the parts of them that a process holds.

FSDP2 divides every weight along its first dimension as `torch.chunk` does: the last parts may be smaller, or empty.
With hybrid sharding the parts are repeated: the mesh then has two dimensions, and the weight is divided along one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process that has a part: an exchange where it is divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def to_local(tensor: Tensor) -> Tensor:
    """Returns what this process holds, as a view; all of it where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, the same on every process, divided as `like` is; itself where `like` is whole."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@dataclass(frozen=True)
class RowShard:
    """Which rows of a matrix this process holds, and how sums over all rows are made."""

    start: int
    total: int
    group: dist.ProcessGroup | None = None

    def sum(self, own: Tensor) -> Tensor:
        """Returns the sum over the processes of what each has of a sum over rows."""
        return self._reduced(own, dist.ReduceOp.SUM)

    def max(self, own: Tensor) -> Tensor:
        """Returns the largest value over the processes."""
        return self._reduced(own, dist.ReduceOp.MAX)

    def _reduced(self, own: Tensor, operation: Any) -> Tensor:
        if self.group is None:
            return own
        reduced = own.clone()
        dist.all_reduce(reduced, operation, self.group)
        return reduced


def row_shard_of(tensor: Tensor) -> RowShard:
    """Returns the rows (first dimension) of `tensor` that are here."""
    if not isinstance(tensor, DTensor):
        return RowShard(0, tensor.shape[0] if tensor.ndim else 1)
    mesh, total = tensor.device_mesh, tensor.shape[0]
    dimension = _shard_dimension(tensor)
    chunk = -(-total // mesh.size(dimension))
    return RowShard(min(total, chunk * mesh.get_local_rank(dimension)), total, mesh.get_group(dimension))


def state_like(parameter: Tensor, make: Callable[[int], Tensor], shape: tuple[int, ...], dimension: int) -> Tensor:
    """Returns a tensor of `shape` that is divided along `dimension` as `parameter` is along its first; whole where that
    is.

    `make` gives this process's part, of as many entries along `dimension` as `parameter` has rows here.
    """
    if not isinstance(parameter, DTensor):
        return make(shape[dimension])
    part = make(parameter.to_local().shape[0])
    placements = [Shard(dimension) if isinstance(place, Shard) else place for place in parameter.placements]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part, parameter.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _shard_dimension(tensor: DTensor) -> int:
    (dimension,) = (number for number, place in enumerate(tensor.placements) if isinstance(place, Shard))
    return dimension
