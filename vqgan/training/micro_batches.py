"""Gradient accumulation: one step's batch in parts, one exchange of gradients, figures averaged over the parts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

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


def add_share(metrics: dict[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    """Add `share` of each value, without its graph: the mean over the micro-batches, once all are added."""
    for name, value in values.items():
        part = value.detach() * share
        metrics[name] = metrics[name] + part if name in metrics else part
