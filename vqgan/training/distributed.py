"""Processes and devices, by accelerate. Collectives return their value."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

ThingT = TypeVar("ThingT")


def build_accelerator() -> Accelerator:
    """The accelerator of this process. Precision is off here: it is the task's own business, an explicit autocast.

    Without an accelerator device the processes of a launch must be told that they are CPU processes: accelerate would
    take each of them for the only one, and all would write the same run.
    """
    return Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """The rows of all processes, in rank order: (B, ...) each -> (B * processes, ...)."""
    if accelerator.num_processes == 1:
        return rows
    return accelerator.gather(rows.contiguous())


def gather_things(accelerator: Accelerator, things: Sequence[ThingT]) -> list[ThingT]:
    """The picklable things of all processes, in rank order."""
    if accelerator.num_processes == 1:
        return list(things)
    return list(gather_object(list(things)))


def mean_over_processes(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, float]:
    """The mean of each scalar over the processes, in one exchange."""
    if not values:
        return {}
    stacked: Float[Tensor, "K"] = torch.stack(
        [value.detach().float().reshape(()).to(accelerator.device) for value in values.values()]
    )
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(values, stacked.tolist(), strict=True))
