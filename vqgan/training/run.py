"""Setup and main loop of every training run, for any objective.

Between the two a run puts its own parts together. The order matters: what draws initial weights comes after
`setup_run`.
"""

from collections.abc import Callable, Sequence

from accelerate import Accelerator

from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline
from vqgan.hub.construction import counted_within_memory
from vqgan.system.host_memory import keep_freed_memory
from vqgan.training.loop import TrainingLoop
from vqgan.training.monitor.trackers import Trackers
from vqgan.training.parallel.distributed import build_accelerator, detect_rank_failures
from vqgan.training.parallel.seeding import seed_everything
from vqgan.training.parallel.sharding import requested_sharding
from vqgan.training.run_config import RunConfig
from vqgan.training.run_folder import RunFolder
from vqgan.training.run_report.run_page import write_run_page
from vqgan.training.stopping import end_with_launcher
from vqgan.training.task import Task


def setup_run(seed: int, timeout_minutes: float = 10.0) -> Accelerator:
    """Memory, devices and randomness of this process, which ends with its launcher.

    Raises ConfigError where the accelerate config asks for a sharding that is not supported.
    """
    end_with_launcher()
    keep_freed_memory()
    accelerator = build_accelerator(timeout_minutes)
    requested_sharding(accelerator)
    seed_everything(seed, accelerator.process_index)
    return accelerator


def fit(
    config: RunConfig,
    build_task: Callable[[], Task],
    data: DataPipeline,
    run: RunFolder,
    accelerator: Accelerator,
    preview: Batch,
    title: str,
    notes: Sequence[str] = (),
) -> bool:
    """Train until complete (true) or interrupted (false), from where the run folder's last checkpoint ends.

    The task is built here, so that whatever is trained ends in one line where the machine's memory cannot hold its
    networks. `notes` are findings from before training: said at once, and with those of the first line of metrics.

    Raises what `build_task` raises; ConfigError where the networks are too large; RankFailure where another process of
    the launch ends, or does not answer for `loop.timeout_minutes`.
    """
    task = counted_within_memory(build_task)
    if accelerator.is_main_process:  # a run that is refused leaves no folder
        run.create()
    trackers = Trackers(config.trackers, run, accelerator, config.model_dump(mode="json"))
    with detect_rank_failures(accelerator):
        loop = TrainingLoop(config.loop, task, data, run, accelerator, trackers, preview, title, notes)
        complete = loop.run()
    if complete and config.loop.report and accelerator.is_main_process:
        write_run_page(run.path, config)
    return complete
