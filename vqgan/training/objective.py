"""The task of one network: a new objective writes its loss, and what is evaluated, shown and shipped.

docs/extending.md has a whole one. A second player is in `vqgan.discriminator_trainer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from vqgan.data.batch import Batch
from vqgan.fingerprints import FrozenPart
from vqgan.training.learner import Learner, LossAndMetrics
from vqgan.training.monitor.findings import not_finite
from vqgan.training.task import Stateful

PartT = TypeVar("PartT")


class Objective(ABC, Generic[PartT]):
    """A `vqgan.training.task.Task` that lacks `loss`, `evaluate`, `preview` and `save_model`."""

    network_name: ClassVar[str] = "network"
    """What the network is called in checkpoints."""
    evaluates_sharded: ClassVar[bool] = False
    """Whether `evaluate` is forward passes alone, of as many batches on every process: where weights are sharded
    (FSDP2), the average then need not be whole anywhere."""

    def __init__(self, learner: Learner[Any]) -> None:
        self.learner = learner
        self.accelerator = learner.accelerator
        self.ema = learner.ema
        self.optimizer = learner.optimizer

    def parts(self, batches: Sequence[Batch], step: int) -> Sequence[PartT]:
        """What the loss is computed on, of each of this process's micro-batches: the batch itself."""
        del step
        return batches  # type: ignore[return-value]

    @abstractmethod
    def loss(self, part: PartT, step: int) -> LossAndMetrics:
        """What is minimized on a micro-batch, and scalars to log. `self.learner(...)` is the network in training."""

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        return self.backward(batches, step) | self.update(step)

    def backward(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """The gradients of the step's loss."""
        return self.learner.backward(self.parts(batches, step), lambda part: self.loss(part, step))

    def update(self, step: int) -> dict[str, Tensor]:
        """What the gradients change, if they are finite."""
        return self.learner.update(step)

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers."""
        return not_finite(metrics)

    def stateful(self) -> dict[str, Stateful]:
        return self.learner.stateful(self.network_name)

    def frozen_parts(self) -> Mapping[str, FrozenPart]:
        return {}
