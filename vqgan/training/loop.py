"""The one training loop: it decides when to log, evaluate, preview, save and stop; the task decides the rest.

Running the same command again resumes from the newest checkpoint, and gives the numbers of a run that was never
stopped: what a step sees depends on its number alone (see `vqgan.data.loader`), and all other state is saved. Steps
without a finite gradient are the guard's business (see `vqgan.training.guard`): the loop goes back when it says so.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import Field

from vqgan.config import Config
from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline, Share
from vqgan.data.source import UnusableSample
from vqgan.training.checkpoint import Checkpoints, collect, restore
from vqgan.training.distributed import gather_things, mean_over_processes
from vqgan.training.findings import Findings
from vqgan.training.guard import Guard, GuardConfig, TrainingDiverged, separate_skips
from vqgan.training.progress import Progress
from vqgan.training.protocol import Task
from vqgan.training.run_folder import RunFolder
from vqgan.training.trackers import Trackers
from vqgan.training.window import Window

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
    guard: GuardConfig = GuardConfig()
    """What to do about steps without a finite gradient."""


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
        self._window = Window(data.config.batch_size)
        self._guard = Guard(config.guard)
        self._findings = Findings()
        self._done = 0
        self._without_gradient: list[str] = []
        self._save_waits = False
        self._skipped: dict[str, str] = {}
        self._newly_skipped: list[UnusableSample] = []
        self._stop_requested = False
        self._seconds = 0.0

    def run(self) -> bool:
        """Train to the last step, or until interrupted. True when the run is complete.

        Raises TrainingDiverged when too many steps in a row have no finite gradient and going back does not help.
        """
        self._done = self._resume()
        if self.accelerator.is_main_process:
            self.run_folder.write_config()
        progress = Progress(self.title, self._done, self.config.steps, self.accelerator.is_main_process)
        if self._done:
            progress.say(f"resuming at step {self._done} of {self.config.steps} in {self.run_folder.path}")
        with self._listening_for_signals():
            while (ending := self._train(progress)) == "diverged":
                self._done = self._go_back(self._done, progress)
        progress.close()
        self.trackers.close()
        return ending == "complete"

    def _train(self, progress: Progress) -> Literal["complete", "interrupted", "diverged"]:
        """The steps from where the run stands."""
        steps, offset, window = self.config.steps, self._guard.data_offset, self._window
        share = Share(self.accelerator.process_index, self.accelerator.num_processes, self.config.micro_batches)
        data = self.data.training_batches(self._done + offset, steps + offset, share)
        window.start_clock()
        for step, batches in enumerate(data, start=self._done):
            metrics = self.task.train_step([self._received(batch) for batch in batches], step)
            figures, self._without_gradient = separate_skips(metrics)
            self._guard.count(bool(self._without_gradient))
            if self._without_gradient:
                window.add_skipped()
            else:
                window.add(figures)
            done = self._done = step + 1
            progress.advance()
            if done % self.config.log_every == 0 or done == steps:
                self._log(done, progress)
            window.stop_clock()
            if self._guard.diverged:
                return "diverged"
            interrupted = done < steps and self._should_stop(done)
            self._after_step(done, interrupted, progress)
            if interrupted:
                return "interrupted"
            window.start_clock()
        return "complete"

    def _after_step(self, done: int, interrupted: bool, progress: Progress) -> None:
        last = done == self.config.steps
        if _due(done, self.config.evaluate_every) or last:
            processes = self.accelerator.num_processes
            size = Share(0, processes, self.config.micro_batches).local_size(self.data.config.batch_size)
            held_out = self.data.heldout_batches(self.accelerator.process_index, processes, size)
            figures = self.task.evaluate(map(self._received, held_out))
            self.trackers.log(figures, done, "heldout")
            progress.say(f"step {done} held out  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        if (_due(done, self.config.preview_every) or last) and self.accelerator.is_main_process:
            self.run_folder.save_picture(self.task.preview(self._preview_batch), done)
        # While steps are being skipped no checkpoint pushes out the older ones: those are what the run can go back to.
        self._save_waits |= _due(done, self.config.save_every)
        if (self._save_waits and not self._guard.skipping) or last or interrupted:
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
        if self._guard.skipped_steps:
            figures["skipped_steps"] = float(self._guard.skipped_steps)
        if self._window.skipped_share():
            figures["skipped_share"] = self._window.skipped_share()
        self.trackers.log(figures, done, "train")
        shown = {name: value for name, value in figures.items() if name.startswith("loss") or name == "skipped_steps"}
        progress.report(done, shown, rate)
        self._window.clear()
        figures |= {"step": done, "run_share": done / self.config.steps}
        for finding in self._findings.news(self.task.diagnose(figures)):
            progress.say(f"step {done}: {finding}")
            self._record_event(done, {"event": "finding", "finding": finding})

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
        step = self._agreed(complete[-1] if complete else 0)
        if step:
            loop_state = self._restore(step)
            self._skipped = dict(loop_state["skipped"])
            self._guard.load_state_dict(loop_state["guard"])
        if self.accelerator.is_main_process:
            self.run_folder.forget_metrics_after(step)
        return step

    def _restore(self, step: int) -> dict[str, Any]:
        """Everything as it was when the checkpoint of `step` was written; returns the loop's own part."""
        state = self._checkpoints.read_part(step, "state.pt")
        loop_state: dict[str, Any] = state.pop("loop")
        restore(self.task.stateful(), state, f"{self.run_folder.path} at step {step}")
        self._seconds = loop_state["seconds"]
        self._findings.load_state_dict(loop_state["findings"])
        self._restore_process(step, loop_state["processes"])
        return loop_state

    def _restore_process(self, step: int, processes: int) -> None:
        """What each process has of its own: the random state, and the figures since the last log line."""
        self._window.clear()
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

    def _go_back(self, done: int, progress: Progress) -> int:
        """To the last good checkpoint, with other data and fresh draws. Raises TrainingDiverged if it cannot."""
        guard = self._guard
        seen = (
            f"{self.config.guard.max_skipped_in_a_row} steps in a row without a finite gradient "
            f"({', '.join(self._without_gradient)})"
        )
        self._report_skipped(progress)
        if guard.rollbacks >= self.config.guard.max_rollbacks:
            raise self._diverged(done, f"{seen}, and loop.guard.max_rollbacks is {self.config.guard.max_rollbacks}")
        step = self._agreed(self._last_good_checkpoint())
        if not step:
            raise self._diverged(done, f"{seen}, and there is no checkpoint from before (loop.save_every)")
        self._restore(step)
        guard.go_back(done, step)
        torch.manual_seed(torch.initial_seed() + done)
        # Saved again at once: a run that is killed from here on has gone back already.
        if self.accelerator.is_main_process:
            self.run_folder.forget_checkpoints_after(step)
        self._save(step)
        if self.accelerator.is_main_process:
            self.run_folder.forget_metrics_after(step)
        self._record_event(step, {"event": "rolled_back", "from": done, "to": step, "seen": seen})
        progress.go_back(step)
        progress.say(f"step {done}: {seen}; back to step {step}, past the batches that led here")
        return step

    def _last_good_checkpoint(self) -> int:
        for step in reversed(self._checkpoints.steps() if self.accelerator.is_main_process else []):
            if self._checkpoints.read_part(step, "state.pt")["loop"]["guard"]["calm"]:
                return step
        return 0

    def _diverged(self, done: int, reason: str) -> TrainingDiverged:
        advice = " ".join(self.task.diagnose({"skipped_share": 1.0}))
        self._record_event(done, {"event": "diverged", "seen": reason})
        return TrainingDiverged(f"training diverged at step {done}: {reason}. {advice}")

    def _agreed(self, choice: int) -> int:
        """The first process's choice."""
        choices = [choice]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(choices)
        return choices[0]

    def _record_event(self, step: int, event: dict[str, object]) -> None:
        if self.accelerator.is_main_process:
            self.run_folder.append_metrics({"step": step, "split": "event", **event})

    def _save(self, done: int) -> None:
        accelerator = self.accelerator
        self._save_waits = False
        if accelerator.is_main_process:
            self._checkpoints.prepare(done)
            loop_state = {
                "seconds": self._seconds,
                "skipped": self._skipped,
                "guard": self._guard.state_dict(),
                "findings": self._findings.state_dict(),
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


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
