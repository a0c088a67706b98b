"""Processes and devices through accelerate. Collectives return their value."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, gather_object
from jaxtyping import Float
from torch import Tensor

from vqgan.errors import ConfigError, UserError
from vqgan.training.parallel.accelerate_environment import check_environment

ThingT = TypeVar("ThingT")


def build_accelerator(timeout_minutes: float = 10.0) -> Accelerator:
    """Returns the accelerator of this process. Precision is off here: it is the task's own business, an explicit
    autocast.

    Without an accelerator device the processes of a launch must be told that they are CPU processes: accelerate would
    take each of them for the only one, and all would write the same run. A process that waits for another in an
    exchange gives up after `timeout_minutes`. Raises ConfigError where accelerate's environment, or its config file,
    asks for what the run's own config decides.
    """
    check_environment()
    waiting = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
    try:
        return Accelerator(
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # else the environment's
            cpu=not torch.accelerator.is_available(),
            kwargs_handlers=[waiting],
        )
    except (ValueError, KeyError) as error:  # a variable with a value that accelerate cannot read
        raise ConfigError(f"accelerate cannot use its environment or config file: {error}") from None


class RankFailure(UserError, RuntimeError):
    """Another process of the launch has ended or does not answer; the message is one line."""


@contextmanager
def detect_rank_failures(accelerator: Accelerator) -> Iterator[None]:
    """Make one line of what a failed exchange says. gloo notices at once that a process has ended, NCCL by waiting."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = " ".join(str(error).splitlines()[0].split())
        raise RankFailure(
            f"process {accelerator.process_index} of {accelerator.num_processes} ends, as another has ended or does "
            f"not answer ({reason[:160]}); see what that one said, then run the same command again: it goes on from "
            "the last checkpoint"
        ) from None


def all_gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Returns the rows of all processes, in rank order: (B, ...) each -> (B * processes, ...)."""
    if accelerator.num_processes == 1:
        return rows
    return accelerator.gather(rows.contiguous())


def all_gather_object(accelerator: Accelerator, things: Sequence[ThingT]) -> list[ThingT]:
    """Returns the picklable things of all processes, in rank order."""
    if accelerator.num_processes == 1:
        return list(things)
    return list(gather_object(list(things)))


def all_reduce_mean(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, float]:
    """Returns the mean of each scalar over the processes, in one exchange."""
    if not values:
        return {}
    stacked: Float[Tensor, "K"] = torch.stack(
        [value.detach().float().reshape(()).to(accelerator.device) for value in values.values()]
    )
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(values, stacked.tolist(), strict=True))
