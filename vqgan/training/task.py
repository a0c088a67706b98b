"""Interface between task and loop: the task decides *what* is minimized, the loop *when*."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from vqgan.data.batch import Batch
from vqgan.fingerprints import FrozenPart


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state belongs to a checkpoint."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@runtime_checkable
class Task(Protocol):
    """An objective with its networks and optimizers."""

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """One update from this process's micro-batches (usually one); returns scalars to log.

        `skipped`, and any `..._skipped`, is a player's flag, in the host's memory: 1 where its update was left out
        because its gradient was not finite (see `Optimizer.step`). The loop counts such a step and drops its metrics.
        """
        ...

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns what goes wrong, in plain words with the config keys that help; empty for a healthy run.

        `metrics` are those of a log line (means since the line before), `step`, the steps that are done, and
        `run_share`, the share of the run that they are. `skipped_share`, the share of the steps since the line before
        that were skipped, is there where it is not 0. A metric that the phase of the run does not give is missing: no
        finding then.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns metrics on this process's share of the validation batches; the result is the same on every
        process."""
        ...

    def preview(self, batch: Batch) -> Image.Image:
        """Returns a preview image: reconstructions or samples."""
        ...

    def stateful(self) -> dict[str, Stateful]:
        """Returns everything that a resumed run needs, by name."""
        ...

    def frozen_parts(self) -> Mapping[str, FrozenPart]:
        """Returns what the run reads and does not train, by the config key that says where it is: networks that its
        losses or its data go through. They are in no checkpoint; a run that resumes with others would be another
        run."""
        ...

    def save_model(self, folder: Path) -> None:
        """Saves the averaged weights and their config as a model folder."""
        ...
