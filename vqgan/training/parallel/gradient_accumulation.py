"""Gradient accumulation: one step's batch in parts, one exchange of gradients, metrics averaged over the parts.

A part's mean over something of which parts have different numbers (text tokens) is not to be averaged over the parts:
`weight_of_each` makes one mean of the step of it.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PartT = TypeVar("PartT")


class Rows(NamedTuple):
    """Where a micro-batch lies in its step's global batch: from row `start` of `batch_size`."""

    start: int
    batch_size: int


def rows_of(accelerator: Accelerator, batches: Sequence[Sized]) -> list[Rows]:
    """The rows of this process's micro-batches. What is drawn for a row depends on them: not on who draws it."""
    rank, processes, local = accelerator.process_index, accelerator.num_processes, len(batches[0])
    return [Rows((part * processes + rank) * local, local * processes * len(batches)) for part in range(len(batches))]


def accumulate(network: nn.Module, parts: Sequence[PartT]) -> Iterator[PartT]:
    """Each micro-batch; gradients are exchanged between processes only at the last.

    Divided networks exchange them at every one: otherwise each process would hold whole gradients in between.
    """
    for part in parts[:-1]:
        with network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext():
            yield part
    yield parts[-1]


def weight_of_each(accelerator: Accelerator, counts: Sequence[Tensor]) -> Tensor:
    """Returns what multiplies a micro-batch's sum, so that everything that is counted in a step counts alike.

    `counts`: the numbers of this process's micro-batches, on its device. Losses, gradients and metrics are averaged
    over the micro-batches and over the processes: the result is micro-batches * processes / (the number over all of
    both), as if there were one where there is none. All processes call it at the same place.
    """
    count = torch.stack([count.detach().float() for count in counts]).sum()
    if accelerator.num_processes > 1:
        count = torch.as_tensor(accelerator.reduce(count, reduction="sum"))
    return len(counts) * accelerator.num_processes / count.clamp(min=1)


def add_share(metrics: dict[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    """Add `share` of each value, without its graph: the mean over the micro-batches, once all are added."""
    for name, value in values.items():
        part = value.detach() * share
        metrics[name] = metrics[name] + part if name in metrics else part
