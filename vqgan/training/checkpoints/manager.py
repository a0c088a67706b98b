"""Saves and loads the whole state of a run, of all its processes: this is where checkpoints are written.

The loop decides when. All processes call these methods together. A failure on one of them fails on all, with the same
line, and leaves existing checkpoints unchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from vqgan.system.atomic_files import CannotWriteError, check_space
from vqgan.training.checkpoints.run_identity import IDENTITY_FILE, Identity
from vqgan.training.checkpoints.sharded_state import ShardedStateDict, separate
from vqgan.training.checkpoints.store import CheckpointError, CheckpointMeta, Checkpoints, collect, restore
from vqgan.training.monitor.metric_accumulator import MetricAccumulator
from vqgan.training.optim.ema import EMA
from vqgan.training.parallel.distributed import all_gather_object
from vqgan.training.parallel.sharded_tensors import to_local
from vqgan.training.run_folder import RunFolder
from vqgan.training.task import Task


class CheckpointManager:
    """Writes and reads the checkpoints of `task` in `run`, and keeps the newest `keep`."""

    def __init__(
        self, task: Task, window: MetricAccumulator, accelerator: Accelerator, run: RunFolder, keep: int
    ) -> None:
        self.checkpoints = Checkpoints(run.checkpoints, keep)
        self._task = task
        self._window = window
        self._accelerator = accelerator
        self._run = run
        self._identity = Identity(run.fixed_settings(), task.frozen_parts(), run.path)

    def newest(self) -> tuple[int, list[str]]:
        """Step of the newest checkpoint that is intact, 0 where there is none at all; and what there is to say.

        Damaged ones that are newer are set aside. Raises CheckpointError where all are damaged.
        """
        if self._accelerator.is_main_process:
            self._run.recover()
            self.checkpoints.clean_up()
        damaged: dict[int, str] = {}
        for step in reversed(self._steps()):
            if damage := self._damage(step):
                damaged[step] = damage
                continue
            return step, [self._quarantine(bad, what, step) for bad, what in damaged.items()]
        if damaged:
            found = "; ".join(f"step {step}: {what}" for step, what in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints.folder} is intact ({found}); put an intact copy there, or choose "
                "another run_dir to begin anew"
            )
        return 0, []

    def last_good(self) -> int:
        """Returns the step of the newest checkpoint for a rollback; 0 if there is none."""
        for step in reversed(self._steps()):
            if self._all_ranks_agree(self.checkpoints.about(step).good) and not self._damage(step):
                return step
        return 0

    def not_finite(self) -> list[str]:
        """Returns the names of the parts of the task's state with non-finite values."""
        state = collect(self._task.stateful())
        broken = [name for name, part in state.items() if not _is_finite(list(_tensors(part)))]
        return sorted(set(all_gather_object(self._accelerator, broken)))

    def save(self, step: int, loop_state: dict[str, Any], about: CheckpointMeta, keep: set[int]) -> None:
        """Writes the checkpoint of `step` and model/; the checkpoints of the steps in `keep` are never removed.

        Raises CannotWriteError; then the checkpoints are those from before.
        """
        try:
            self._on_all_ranks(lambda: self._prepare(step))
            checksums = self._on_all_ranks(lambda: self._save_sharded(step))
            checksums |= self._on_all_ranks(lambda: self._save_rank_states(step, loop_state))
            # The model first: a run whose last checkpoint exists counts as complete.
            self._on_all_ranks(lambda: self._publish(step, checksums, about, keep))
        except CannotWriteError:
            if self._accelerator.is_main_process:
                self.checkpoints.abandon(step)
            raise

    def save_best(self, evaluation: dict[str, object]) -> None:
        """Writes best/, the model of the best `evaluation`. Raises CannotWriteError and leaves best/ unchanged."""
        self._on_all_ranks(lambda: self._replace_best(evaluation))

    def compare_identity(self, step: int) -> list[str]:
        """Returns whether the checkpoint of `step` is of this run: lines about what differs and may.

        Raises CheckpointError where frozen parts, fixed settings or the vocabulary are others.
        """
        path = self.checkpoints.folder_of(step) / IDENTITY_FILE
        if not path.is_file():  # an earlier version's
            self._identity.compare_settings(self._run.recorded_settings())
            return []
        return self._identity.compare(path.read_bytes())

    def restore(self, step: int) -> dict[str, Any]:
        """Restores the checkpoint of `step`; returns the loop's own state."""
        state = self.checkpoints.read_part(step, "state.pt")
        loop_state: dict[str, Any] = state.pop("loop")
        parts = self._task.stateful()
        whole = ShardedStateDict(state, self.checkpoints.folder_of(step), collect(parts))
        restore(parts, whole, f"{self._run.path} at step {step}")
        self._restore_process(step, loop_state["processes"])
        return loop_state

    @contextmanager
    def full_ema(self, device: torch.device, *, everywhere: bool = False) -> Iterator[None]:
        """Inside, the first process, or each, has the averaged networks whole, on `device`, to save or draw with.

        All processes enter together.
        """
        with ExitStack() as averages:
            for part in self._task.stateful().values():
                if isinstance(part, EMA):
                    averages.enter_context(part.gathered(device, here=everywhere or self._accelerator.is_main_process))
            yield

    def _prepare(self, step: int) -> dict[str, str]:
        if self._accelerator.is_main_process:
            folder = self.checkpoints.prepare(step)
            size = sum(tensor.nbytes for tensor in _tensors(collect(self._task.stateful())))
            check_space(folder, size)
        return {}

    def _save_sharded(self, step: int) -> dict[str, str]:
        """Returns this process's shards of the sharded tensors; a collective."""
        _, divided = separate(collect(self._task.stateful()))
        return self.checkpoints.save_sharded(step, divided)

    def _save_rank_states(self, step: int, loop_state: dict[str, Any]) -> dict[str, str]:
        """Writes this process's files of a checkpoint; returns their checksums by name."""
        accelerator = self._accelerator
        checksums: dict[str, str] = {}
        if accelerator.is_main_process:
            loop_state = loop_state | {"processes": accelerator.num_processes}
            state, _ = separate(collect(self._task.stateful()))
            state |= {"loop": loop_state}
            checksums |= self.checkpoints.save_rank_state(step, "state.pt", state)
            checksums |= self.checkpoints.write_file(step, IDENTITY_FILE, self._identity.content())
        own: dict[str, Any] = {"window": self._window.state_dict(), "cpu_random": torch.get_rng_state()}
        if accelerator.device.type == "cuda":
            own["cuda_random"] = torch.cuda.get_rng_state(accelerator.device)
        return checksums | self.checkpoints.save_rank_state(step, f"process-{accelerator.process_index}.pt", own)

    def _publish(self, step: int, checksums: dict[str, str], about: CheckpointMeta, keep: set[int]) -> dict[str, str]:
        with self.full_ema(torch.device("cpu")):
            if self._accelerator.is_main_process:
                self._run.replace_model(self._task.save_model)
                self.checkpoints.publish(step, checksums, about, keep)
        return {}

    def _replace_best(self, evaluation: dict[str, object]) -> dict[str, str]:
        with self.full_ema(torch.device("cpu")):
            if self._accelerator.is_main_process:
                self._run.replace_best(self._task.save_model, evaluation)
        return {}

    def _restore_process(self, step: int, processes: int) -> None:
        """Returns the state of each process: random state, and the metrics since the last log line."""
        self._window.clear()
        if processes != self._accelerator.num_processes:
            # Another number of processes: new random states, not the initial ones again.
            torch.manual_seed(torch.initial_seed() + step)
            return
        state = self.checkpoints.read_part(step, f"process-{self._accelerator.process_index}.pt")
        self._window.load_state_dict(state["window"])
        torch.set_rng_state(state["cpu_random"])
        if self._accelerator.device.type == "cuda" and "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self._accelerator.device)

    def _quarantine(self, step: int, damage: str, instead: int) -> str:
        if self._accelerator.is_main_process:
            self.checkpoints.quarantine(step)
        return (
            f"the checkpoint of step {step} is damaged ({damage}) and set aside in {self.checkpoints.folder}; "
            f"going on from that of step {instead}"
        )

    def _damage(self, step: int) -> str:
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        return ", ".join(all_gather_object(self._accelerator, self.checkpoints.damage(step, rank, processes)))

    def _steps(self) -> list[int]:
        steps: list[int] = self._all_ranks_agree(self.checkpoints.steps())
        return steps

    def _all_ranks_agree(self, choice: Any) -> Any:
        """Broadcasts the first process's value."""
        choices = [choice]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(choices)
        return choices[0]

    def _on_all_ranks(self, act: Callable[[], dict[str, str]]) -> dict[str, str]:
        """Runs `act` on all processes. If one of them cannot write, all raise CannotWriteError."""
        results: dict[str, str] = {}
        failure = ""
        try:
            results = act()
        except CannotWriteError as error:
            failure = str(error)
        gathered = all_gather_object(self._accelerator, [(results, failure)])
        for _, failure in gathered:
            if failure:
                raise CannotWriteError(failure)
        return {name: value for results, _ in gathered for name, value in results.items()}


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _is_finite(tensors: list[Tensor]) -> bool:
    flags = [to_local(tensor).isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    devices = {flag.device for flag in flags}
    return all(bool(torch.stack([flag for flag in flags if flag.device == device]).all()) for device in devices)
