"""The one training loop: it decides when to log, evaluate, preview, save and stop; the task decides the rest.

Running the same command again resumes from the newest checkpoint, and gives the numbers of a run that was never
stopped: what a step sees depends on its number alone (see `vqgan.data.loader`), and all other state is saved.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import Field
from torch import Tensor

from vqgan.config import Config
from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline, Share
from vqgan.data.source import UnusableSample
from vqgan.training.checkpoint import Checkpoints, collect, restore
from vqgan.training.distributed import gather_things, mean_over_processes
from vqgan.training.progress import Progress
from vqgan.training.protocol import Task
from vqgan.training.run_folder import RunFolder
from vqgan.training.trackers import Trackers

EXIT_INTERRUPTED = 75
"""Exit code of a run that was asked to stop, saved and can be resumed (EX_TEMPFAIL)."""

_STEPS_BETWEEN_AGREEING_TO_STOP = 8
"""With several processes: to ask whether one of them was told to stop, each waits for its device."""


class LoopConfig(Config):
    """How long a run is and what happens when. All counts are optimiser steps; 0 means never."""

    steps: int = Field(1000, gt=0)
    """Length of the run."""
    micro_batches: int = Field(1, gt=0)
    """Gradient accumulation: parts into which each process's share of a batch is divided."""
    log_every: int = Field(50, gt=0)
    """Steps between lines of figures."""
    evaluate_every: int = Field(500, ge=0)
    """Steps between evaluations on held-out data; the last step always has one."""
    preview_every: int = Field(500, ge=0)
    """Steps between pictures in samples/; the last step always has one."""
    save_every: int = Field(500, ge=0)
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(2, gt=0)
    """Number of newest checkpoints that stay."""


class TrainingLoop:
    """Trains `task` on `data` in `run`. `title` heads the progress display."""

    def __init__(
        self,
        config: LoopConfig,
        task: Task,
        data: DataPipeline,
        run: RunFolder,
        accelerator: Accelerator,
        trackers: Trackers,
        preview_batch: Batch,
        title: str,
    ) -> None:
        self.config = config
        self.task = task
        self.data = data
        self.run_folder = run
        self.accelerator = accelerator
        self.trackers = trackers
        self.title = title
        self._checkpoints = Checkpoints(run.checkpoints, config.keep_checkpoints)
        self._preview_batch = preview_batch.to(accelerator.device)
        self._window = _Window(data.config.batch_size)
        self._skipped: dict[str, str] = {}
        self._newly_skipped: list[UnusableSample] = []
        self._stop_requested = False
        self._seconds = 0.0

    def run(self) -> bool:
        """Train to the last step, or until interrupted. True when the run is complete."""
        first_step = self._resume()
        steps = self.config.steps
        progress = Progress(self.title, first_step, steps, self.accelerator.is_main_process)
        if first_step:
            progress.say(f"resuming at step {first_step} of {steps} in {self.run_folder.path}")
        share = Share(self.accelerator.process_index, self.accelerator.num_processes, self.config.micro_batches)
        window = self._window
        interrupted = False
        with self._listening_for_signals():
            window.start_clock()
            for step, batches in enumerate(self.data.training_batches(first_step, steps, share), start=first_step):
                window.add(self.task.train_step([self._received(batch) for batch in batches], step))
                done = step + 1
                progress.advance()
                if done % self.config.log_every == 0 or done == steps:
                    self._log(done, progress)
                window.stop_clock()
                interrupted = done < steps and self._should_stop(done)
                self._after_step(done, interrupted, progress)
                if interrupted:
                    break
                window.start_clock()
        progress.close()
        self.trackers.close()
        return not interrupted

    def _after_step(self, done: int, interrupted: bool, progress: Progress) -> None:
        last = done == self.config.steps
        if _due(done, self.config.evaluate_every) or last:
            held_out = self.data.heldout_batches(self.accelerator.process_index, self.accelerator.num_processes)
            figures = self.task.evaluate(map(self._received, held_out))
            self.trackers.log(figures, done, "heldout")
            progress.say(f"step {done} held out  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        if (_due(done, self.config.preview_every) or last) and self.accelerator.is_main_process:
            self.run_folder.save_picture(self.task.preview(self._preview_batch), done)
        if _due(done, self.config.save_every) or last or interrupted:
            self._report_skipped(progress)
            self._save(done)
            if interrupted:
                progress.say(f"stopped at step {done}, saved; run the same command to go on")

    def _log(self, done: int, progress: Progress) -> None:
        self._report_skipped(progress)
        figures = mean_over_processes(self.accelerator, self._window.means())
        rate, seconds = self._window.rate()
        self._seconds += seconds
        figures["images_per_second"] = rate
        figures["seconds"] = self._seconds
        if self._skipped:
            figures["skipped_items"] = float(len(self._skipped))
        self.trackers.log(figures, done, "train")
        shown = {name: value for name, value in figures.items() if name.startswith("loss")}
        progress.report(done, shown, rate)
        self._window.clear()

    def _received(self, batch: Batch) -> Batch:
        self._newly_skipped += [item for item in batch.skipped if item.name not in self._skipped]
        return batch.to(self.accelerator.device)

    def _report_skipped(self, progress: Progress) -> None:
        """Name and count the unusable items that any process has met; an exchange between the processes."""
        for item in gather_things(self.accelerator, self._newly_skipped):
            if item.name not in self._skipped:
                self._skipped[item.name] = item.cause
                progress.say(f"skipped {item} ({len(self._skipped)} unusable so far)")
        self._newly_skipped.clear()

    def _resume(self) -> int:
        complete = self._checkpoints.steps()
        choice = [complete[-1] if complete else 0]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(choice)
        step = choice[0]
        if step:
            state = self._checkpoints.read_part(step, "state.pt")
            loop_state = state.pop("loop")
            restore(self.task.stateful(), state, f"{self.run_folder.path} at step {step}")
            self._seconds = loop_state["seconds"]
            self._skipped = dict(loop_state["skipped"])
            self._resume_process(step, loop_state["processes"])
        if self.accelerator.is_main_process:
            self.run_folder.forget_metrics_after(step)
        return step

    def _resume_process(self, step: int, processes: int) -> None:
        """What each process has of its own: the random state, and the figures since the last log line."""
        if processes != self.accelerator.num_processes:
            torch.manual_seed(
                torch.initial_seed() + step
            )  # other processes than before: fresh draws, not the first again
            return
        state = self._checkpoints.read_part(step, f"process-{self.accelerator.process_index}.pt")
        self._window.load_state_dict(state["window"])
        torch.set_rng_state(state["cpu_random"])
        if self.accelerator.device.type == "cuda" and "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.accelerator.device)

    def _save(self, done: int) -> None:
        accelerator = self.accelerator
        if accelerator.is_main_process:
            self._checkpoints.prepare(done)
            loop_state = {
                "seconds": self._seconds,
                "skipped": self._skipped,
                "processes": accelerator.num_processes,
            }
            self._checkpoints.write_part(done, "state.pt", collect(self.task.stateful()) | {"loop": loop_state})
        accelerator.wait_for_everyone()
        own: dict[str, Any] = {"window": self._window.state_dict(), "cpu_random": torch.get_rng_state()}
        if accelerator.device.type == "cuda":
            own["cuda_random"] = torch.cuda.get_rng_state(accelerator.device)
        self._checkpoints.write_part(done, f"process-{accelerator.process_index}.pt", own)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            # The model first: a run whose last checkpoint stands counts as complete.
            self.run_folder.replace_model(self.task.save_model)
            self._checkpoints.publish(done)
        accelerator.wait_for_everyone()

    def _should_stop(self, done: int) -> bool:
        if self.accelerator.num_processes == 1:
            return self._stop_requested
        if done % _STEPS_BETWEEN_AGREEING_TO_STOP:
            return False
        flag = torch.tensor([float(self._stop_requested)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())

    @contextmanager
    def _listening_for_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the step, save and leave; a second one leaves at once."""

        def stop(_number: int, _frame: object) -> None:
            if self._stop_requested:
                raise KeyboardInterrupt
            self._stop_requested = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Window:
    """Sums of the figures since the last log line, kept on the device: no wait for it at every step."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.clear()

    def add(self, values: dict[str, Tensor]) -> None:
        self._steps += 1
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros((), device=value.device), 0))
            self._sums[name] = (total.to(value.device) + value.detach().float(), count + 1)

    def means(self) -> dict[str, Tensor]:
        """A figure that only some steps give (R1, adversarial) is averaged over those."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def start_clock(self) -> None:
        """Training goes on."""
        self._started = time.monotonic()

    def stop_clock(self) -> None:
        """What follows (evaluation, saving) does not count into the rate."""
        self._seconds += time.monotonic() - self._started

    def rate(self) -> tuple[float, float]:
        """Pictures per second over all processes, and the seconds themselves, while the clock runs."""
        seconds = self._seconds + time.monotonic() - self._started
        return self._steps * self._batch_size / max(seconds, 1e-9), seconds

    def clear(self) -> None:
        """Begin again, with the clock running."""
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._steps = 0
        self._seconds = 0.0
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "steps": self._steps, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._steps, self._seconds = state["sums"], state["steps"], state["seconds"]


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
