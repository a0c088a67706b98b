"""The metrics of a recorded training step, of any task."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from vqgan.data.batch import Batch
from vqgan.planning.footprint import Footprint
from vqgan.planning.step_recorder import StepRecorder
from vqgan.training.task import Task


@dataclass(frozen=True)
class StepTrace:
    """What one process does in a step, alone; how several share it is `vqgan.planning.parallelism`'s business."""

    footprint: Footprint
    """Its memory."""
    parts: dict[str, int]
    """Parameters of the trained networks by part."""
    largest_block: int
    """Bytes of the largest layer: what is gathered at a time where weights are divided over processes."""
    outside_blocks: int
    """Parameters that are in no layer."""
    flops: float
    """Of a step's matrix products, convolutions and attention, for one image."""
    frozen_parts: dict[str, int] = field(default_factory=dict)
    """Parameters of networks that do not learn, by name."""

    @property
    def parameters(self) -> int:
        """Of the trained networks."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Roles:
    """Who plays in a step: the networks that learn, those that do not, and the averaged copies."""

    trained: Sequence[nn.Module]
    frozen: Sequence[nn.Module]
    averaged: Sequence[nn.Module]


def trace_step(
    recording: StepRecorder, task: Task, roles: Roles, steps: Iterable[Sequence[Batch]]
) -> tuple[int, list[float]]:
    """Run steps of these micro-batches; returns when they began, and each one's arithmetic for one image."""
    for network in roles.trained:
        recording.call(_tensors(network), "weights")
    for network in roles.frozen:
        recording.call(_tensors(network), "frozen networks")
    for network in roles.averaged:
        recording.call(_tensors(network), "averaged copy")
    recording.truth = True
    since, flops = recording.now, []
    for step, batches in enumerate(steps):
        before = recording.flops
        task.train_step(batches, step)
        flops.append((recording.flops - before) / sum(map(len, batches)))
    return since, flops


def images(count: int, size: int) -> Batch:
    """Returns a batch of so many square images with captions."""
    images = torch.zeros(count, 3, size, size)
    return Batch(images, ["a caption"] * count, [str(number) for number in range(count)])


def parameters_of(module: nn.Module) -> int:
    """Returns the numbers in its weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
