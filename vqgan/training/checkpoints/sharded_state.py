"""Sharded tensors in a checkpoint: each process writes its shard, and any number of processes can read them.

Written by torch.distributed.checkpoint as safetensors files (`shard-0000R-...safetensors`, one per process): nothing is
pickled. Other state stays in `state.pt`, which refers to each sharded tensor by name. A run that resumes in a single
process, or without sharding, gets full tensors.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import empty as empty_divided

from vqgan.system.checksums import file_sha256
from vqgan.training.parallel.sharded_tensors import shard_like

_KEY = "divided_tensor"


def separate(state: Any, path: str = "") -> tuple[Any, dict[str, DTensor]]:
    """Returns `state` with a reference in place of each sharded tensor, and those tensors by their names."""
    if isinstance(state, DTensor):
        dimension = next(place.dim for place in state.placements if isinstance(place, Shard))
        kind = str(state.dtype).removeprefix("torch.")
        return {_KEY: path, "shape": list(state.shape), "dtype": kind, "dimension": dimension}, {path: state}
    if not isinstance(state, Mapping | list | tuple):
        return state, {}
    divided: dict[str, DTensor] = {}

    def inner(name: object, value: Any) -> Any:
        kept, found = separate(value, f"{path}.{name}" if path else str(name))
        divided.update(found)
        return kept

    if isinstance(state, Mapping):
        return {name: inner(name, value) for name, value in state.items()}, divided
    return type(state)([inner(number, value) for number, value in enumerate(state)]), divided


def save_sharded(divided: dict[str, DTensor], folder: Path) -> dict[str, str]:
    """Write this process's parts into `folder`, down to the disk; the checksums of its files. All processes together.

    Raises OSError, on all processes, where one of them cannot write.
    """
    if not divided:
        return {}
    try:
        save(divided, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise next((e for e, _ in error.failures.values() if isinstance(e, OSError)), error) from None
    # As its writer names them: by rank, from 1.
    own = folder.glob(f"shard-{dist.get_rank() + 1:05d}-*.safetensors")
    return {path.name: file_sha256(path) for path in own}


class ShardedStateDict(Mapping[str, Any]):
    """The state that was separated, by the name of each object; its divided tensors are read when it is asked for.

    They come divided as those in `current`, the state of the same objects now, or whole where none there is divided;
    and so do tensors that were saved whole, where `current` has a divided one. All processes ask together, in the same
    order.
    """

    def __init__(self, state: Mapping[str, Any], folder: Path, current: Mapping[str, Any]) -> None:
        self._state = state
        self._folder = folder
        self._current = current
        self._mesh = _mesh(current)

    def __getitem__(self, name: str) -> Any:
        targets: dict[str, Tensor] = {}
        filled = self._with_targets(self._state[name], self._current.get(name), targets)
        if targets:
            reader = HuggingFaceStorageReader(str(self._folder))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                load(targets, storage_reader=reader, no_dist=not dist.is_initialized())
        return filled

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def _with_targets(self, state: Any, current: Any, targets: dict[str, Tensor]) -> Any:
        """`state` with an empty tensor for each note, which is also in `targets`, to be filled."""
        if isinstance(state, Mapping) and _KEY in state:
            targets[state[_KEY]] = self._empty(state["shape"], getattr(torch, state["dtype"]), state["dimension"])
            return targets[state[_KEY]]
        if isinstance(state, Tensor) and isinstance(current, Tensor):
            return shard_like(state, current)
        if isinstance(state, Mapping):
            known = current if isinstance(current, Mapping) else {}
            return {name: self._with_targets(value, known.get(name), targets) for name, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)([self._with_targets(value, None, targets) for value in state])
        return state

    def _empty(self, shape: list[int], dtype: torch.dtype, dimension: int) -> Tensor:
        if self._mesh is None:
            return torch.empty(shape, dtype=dtype)
        places = [Replicate()] * (self._mesh.ndim - 1) + [Shard(dimension)]
        return empty_divided(shape, dtype=dtype, device_mesh=self._mesh, placements=places)


def _mesh(state: Any) -> DeviceMesh | None:
    _, divided = separate(state)
    return next((tensor.device_mesh for tensor in divided.values()), None)
