"""What every training run begins and ends with, whatever its objective.

Between the two a run puts its own parts together. The order matters: what draws initial weights comes after `begin`.
"""

from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator

from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline
from vqgan.training.distributed import build_accelerator
from vqgan.training.host_memory import keep_freed_memory
from vqgan.training.loop import LoopConfig, TrainingLoop
from vqgan.training.protocol import Task
from vqgan.training.run_folder import RunFolder
from vqgan.training.seeding import seed_everything
from vqgan.training.trackers import Trackers, TrackersConfig


@runtime_checkable
class RunSettings(Protocol):
    """What the config of any run has."""

    @property
    def loop(self) -> LoopConfig: ...

    @property
    def trackers(self) -> TrackersConfig: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def begin(seed: int) -> Accelerator:
    """Memory, devices and randomness of this process."""
    keep_freed_memory()
    accelerator = build_accelerator()
    seed_everything(seed, accelerator.process_index)
    return accelerator


def run_to_end(
    settings: RunSettings,
    task: Task,
    data: DataPipeline,
    run: RunFolder,
    accelerator: Accelerator,
    preview: Batch,
    title: str,
) -> bool:
    """Train until complete (true) or interrupted (false), from where the run folder's last checkpoint ends."""
    trackers = Trackers(settings.trackers, run, accelerator, settings.model_dump(mode="json"))
    return TrainingLoop(settings.loop, task, data, run, accelerator, trackers, preview, title=title).run()
