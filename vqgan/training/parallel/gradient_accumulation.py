"""Gradient accumulation: one step's batch in parts, one exchange of gradients, metrics averaged over the parts.

A part's mean over something of which parts have different numbers (text tokens) is not to be averaged over the parts:
`weight_of_each` makes one mean of the step of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

PartT = TypeVar("PartT")


def accumulate(accelerator: Accelerator, network: nn.Module, parts: Sequence[PartT]) -> Iterator[tuple[int, PartT]]:
    """Each micro-batch with its number; gradients are exchanged between processes only at the last.

    Divided networks exchange them at every one: otherwise each process would hold whole gradients in between.
    """
    for number, part in enumerate(parts):
        if isinstance(network, FSDPModule) or number == len(parts) - 1:
            yield number, part
        else:
            with accelerator.no_sync(network):
                yield number, part


def weight_of_each(accelerator: Accelerator, counts: Sequence[Tensor]) -> Tensor:
    """What multiplies a micro-batch's sum, so that everything that is counted in a step counts alike.

    `counts`: the numbers of this process's micro-batches, on its device. Gradients (and metrics) are added up over the
    micro-batches and averaged over the processes: the result is processes / (the number over all of both), as if there
    were one where there is none. All processes call it at the same place.
    """
    count = torch.stack([count.detach().float() for count in counts]).sum()
    if accelerator.num_processes > 1:
        count = torch.as_tensor(accelerator.reduce(count, reduction="sum"))
    return accelerator.num_processes / count.clamp(min=1)


def add_share(metrics: dict[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    """Add `share` of each value, without its graph: the mean over the micro-batches, once all are added."""
    for name, value in values.items():
        part = value.detach() * share
        metrics[name] = metrics[name] + part if name in metrics else part
