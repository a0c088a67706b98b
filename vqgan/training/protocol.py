"""What a training task gives to the loop: it decides *what* is minimised, the loop decides *when*."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from vqgan.data.batch import Batch
from vqgan.training.checkpoint import Stateful


@runtime_checkable
class Task(Protocol):
    """An objective with its networks and optimisers."""

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """One update from this process's micro-batches (usually one); returns scalars to log."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures on this process's share of the held-out batches; the result is the same on every process."""
        ...

    def preview(self, batch: Batch) -> Image.Image:
        """Something to look at: reconstructions, samples."""
        ...

    def stateful(self) -> dict[str, Stateful]:
        """Everything that a resumed run needs, by name."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write what is shipped: the averaged weights and their config."""
        ...
