"""What a task is evaluated on, on any number of processes, with whole or with sharded averages."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice

from accelerate import Accelerator

from vqgan.data.batch import Batch
from vqgan.data.loader import BatchShard, DataPipeline
from vqgan.training.checkpoints.manager import CheckpointManager
from vqgan.training.parallel.sharding import is_sharding_requested
from vqgan.training.task import Task


class Validation:
    """Evaluates `task` on validation batches of micro-batch size, as many as steps have, once they are `received`."""

    def __init__(
        self,
        task: Task,
        data: DataPipeline,
        saving: CheckpointManager,
        accelerator: Accelerator,
        micro_batches: int,
        received: Callable[[Batch], Batch],
    ) -> None:
        self._task = task
        self._data = data
        self._saving = saving
        self._accelerator = accelerator
        self._micro_batches = micro_batches
        self._received = received
        # A forward pass through sharded weights takes all processes, so each needs as many batches. Other tasks are
        # evaluated with the whole average.
        self._through_sharded = bool(getattr(task, "evaluates_sharded", False))

    def metrics(self) -> dict[str, float]:
        """Of the whole validation set; the same on every process."""
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        even = self._through_sharded and is_sharding_requested()
        return self._evaluate(rank, processes, None, even)

    def trial(self) -> dict[str, float]:
        """Of one batch, the same one on every process: to see which metrics there are."""
        return self._evaluate(0, 1, 1, False)

    def _evaluate(self, rank: int, processes: int, limit: int | None, even: bool) -> dict[str, float]:
        share = BatchShard(0, self._accelerator.num_processes, self._micro_batches)
        size = share.local_size(self._data.config.batch_size)
        batches = islice(self._data.val_batches(rank, processes, size, even=even), limit)
        whole = self._saving.full_ema(self._accelerator.device, everywhere=True)
        with nullcontext() if self._through_sharded else whole:
            return self._task.evaluate(map(self._received, batches))
