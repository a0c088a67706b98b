"""What every training run begins and ends with, whatever its objective.

Between the two a run puts its own parts together. The order matters: what draws initial weights comes after `begin`.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator

from vqgan.config import ConfigError
from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline
from vqgan.training.distributed import build_accelerator, noticing_lost_processes
from vqgan.training.host_memory import keep_freed_memory
from vqgan.training.loop import LoopConfig, TrainingLoop
from vqgan.training.protocol import Task
from vqgan.training.run_folder import RunFolder
from vqgan.training.seeding import seed_everything
from vqgan.training.sharding import requested_sharding
from vqgan.training.stopping import end_with_launcher
from vqgan.training.trackers import Trackers, TrackersConfig


@runtime_checkable
class RunSettings(Protocol):
    """What the config of any run has."""

    @property
    def loop(self) -> LoopConfig: ...

    @property
    def trackers(self) -> TrackersConfig: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def begin(seed: int, minutes_to_wait: float = 10.0, *, may_shard: bool = False) -> Accelerator:
    """Memory, devices and randomness of this process, which ends with its launcher.

    Raises ConfigError where the accelerate config asks for sharded weights and the run is not one that `may_shard`.
    """
    end_with_launcher()
    keep_freed_memory()
    accelerator = build_accelerator(minutes_to_wait)
    if not may_shard and requested_sharding(accelerator) is not None:
        raise ConfigError(
            "weights are sharded (FSDP2) in runs of tools/train_parti.py with objective next_token alone; use "
            "configs/accelerate/ddp.yaml"
        )
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
    notes: Sequence[str] = (),
) -> bool:
    """Train until complete (true) or interrupted (false), from where the run folder's last checkpoint ends.

    `notes` are findings from before training: said at once, and with those of the first line of figures.

    Raises LostProcess where another process of the launch ends, or does not answer for `loop.minutes_to_wait`.
    """
    trackers = Trackers(settings.trackers, run, accelerator, settings.model_dump(mode="json"))
    with noticing_lost_processes(accelerator):
        loop = TrainingLoop(settings.loop, task, data, run, accelerator, trackers, preview, title, notes)
        return loop.run()
