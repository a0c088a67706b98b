"""The training loop of all objectives: when to log, evaluate, preview, save and stop; the task does the rest.

Running the same command again resumes from the newest checkpoint, and gives the numbers of a run that was never
stopped: what a step sees depends on its number alone (see `vqgan.data.loader`), and all other state is saved (see
`vqgan.training.checkpoints.manager`). Steps without a finite gradient are handled by the NaN guard (see
`vqgan.training.monitor.nan_guard`), which may ask the loop to roll back. Guarantees and failures: docs/resume.md.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator

from vqgan.config.schema import Config
from vqgan.data.batch import Batch
from vqgan.data.loader import BatchShard, DataPipeline
from vqgan.data.source import UnusableSample
from vqgan.training.announcements import complete_already, how_it_begins, where_the_models_are
from vqgan.training.checkpoints.best_tracker import BestTracker, KeepBestConfig
from vqgan.training.checkpoints.manager import CheckpointManager
from vqgan.training.checkpoints.store import CheckpointMeta
from vqgan.training.monitor.code_usage import CountsCodes
from vqgan.training.monitor.diagnostics_log import Diagnostics
from vqgan.training.monitor.metric_accumulator import MetricAccumulator
from vqgan.training.monitor.nan_guard import NaNGuard, NaNGuardConfig, TrainingDiverged, separate_skips
from vqgan.training.monitor.progress import Progress
from vqgan.training.monitor.trackers import Trackers
from vqgan.training.overfitting import about_memorizing, training_loss
from vqgan.training.parallel.distributed import all_gather_object, all_reduce_mean
from vqgan.training.run_folder import RunFolder
from vqgan.training.stopping import StopRequest
from vqgan.training.task import Task
from vqgan.training.validation import Validation

_STEPS_BETWEEN_AGREEING_TO_STOP = 8
"""With several processes: to ask whether one of them was told to stop, each waits for its device."""


class LoopConfig(
    Config,
    may_change=(
        *("steps", "gradient_accumulation_steps", "log_every", "evaluate_every", "preview_every", "save_every"),
        *("keep_checkpoints", "keep_best", "patience", "report", "timeout_minutes"),
    ),
):
    """How long a run is and what happens when. All counts are optimizer steps; 0 means never."""

    steps: int = Field(1000, gt=0)
    """Length of the run."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Gradient accumulation: parts into which each process's share of a batch is divided."""
    log_every: int = Field(50, gt=0)
    """Steps between lines of metrics; after the first step there is a line as a sign of life."""
    evaluate_every: int = Field(500, ge=0)
    """Steps between evaluations on validation data; the last step always has one."""
    preview_every: int = Field(500, ge=0)
    """Steps between images in samples/; unless never, the first step has one, and the last always."""
    save_every: int = Field(500, ge=0)
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(2, gt=0)
    """Number of newest checkpoints to keep; with 2 or more a run survives a damaged one."""
    keep_best: KeepBestConfig | None = None
    """Keep the model of the best evaluation in best/, and its checkpoint: {metric: psnr, mode: higher}."""
    patience: int = Field(0, ge=0)
    """Evaluations in a row without a better one that end the run, with the best model in model/; 0: none do."""
    report: bool = True
    """Show the complete run on a page, report.html in its folder."""
    timeout_minutes: float = Field(10.0, gt=0)
    """Several processes: how long one waits for another before it ends; longer than a preview or checkpoint takes."""
    guard: NaNGuardConfig = NaNGuardConfig()
    """What to do about steps without a finite gradient."""

    @model_validator(mode="after")
    def _check_patience_has_something_to_wait_for(self) -> "LoopConfig":
        if self.patience and (self.keep_best is None or not self.evaluate_every):
            raise ValueError(
                f"patience {self.patience} waits for a better evaluation, so it needs keep_best "
                "({metric: nats_per_code, mode: lower}, for example) and evaluate_every above 0"
            )
        return self


class TrainingLoop:
    """Trains `task` on `data` in `run`. `title` heads the progress display; `notes` are findings from before."""

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
        notes: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.task = task
        self.data = data
        self.run_folder = run
        self.accelerator = accelerator
        self.trackers = trackers
        self.title = title
        self._notes = notes
        self._preview_batch = preview_batch.to(accelerator.device)
        self._window = MetricAccumulator(data.config.batch_size)
        self._checkpoints = CheckpointManager(task, self._window, accelerator, run, config.keep_checkpoints)
        micro_batches = config.gradient_accumulation_steps
        self._validation = Validation(task, data, self._checkpoints, accelerator, micro_batches, self._received)
        self._best = BestTracker(config.keep_best)
        self._guard = NaNGuard(config.guard)
        self._findings = Diagnostics()
        self._findings_val = Diagnostics()
        self._training_loss: float | None = None
        self._done = 0
        self._shown_changed = False
        self._without_gradient: list[str] = []
        self._not_finite: list[str] = []
        self._save_waits = False
        self._skipped: dict[str, str] = {}
        self._newly_skipped: list[UnusableSample] = []
        self._stop = StopRequest()
        self._seconds = 0.0

    def run(self) -> bool:
        """Train to the last step, or until interrupted. True when the run is complete.

        Raises TrainingDiverged when training comes to an end without finite numbers and going back does not help,
        CannotWriteError when the run folder cannot be written, CheckpointError when no checkpoint can be used.
        """
        self._done, said = self._resume()
        self._check_metric_to_keep_best()
        progress = Progress(self.title, self._done, self.config.steps, self.accelerator.is_main_process)
        said += (
            complete_already(self.run_folder, self._done, self.config.steps)
            if self._has_ended()
            else (how_it_begins(self.task, self.data, self.accelerator, self.run_folder, self._done, self.config.steps))
        )
        if self.accelerator.is_main_process:
            self.run_folder.write_config()
        for line in [*said, *(() if self._has_ended() else self._notes)]:
            progress.say(line)
        if self._shown_changed and self._done >= self.config.steps:
            self._save(self._done, passing=False)
            progress.say(f"{self.run_folder.model} is written anew with that")
        answer = f"{self.title}: stopping after this step, saving"
        ending: Literal["complete", "interrupted", "diverged"] = "complete"
        if not self._has_ended():
            with self._stop.listening(answer if self.accelerator.is_main_process else None):
                while (ending := self._train(progress)) == "diverged":
                    self._done = self._go_back(self._done, progress)
        progress.close()
        if ending == "complete":
            if (given_up := self._best.is_given_up(self.config.patience)) and self.accelerator.is_main_process:
                self.run_folder.ship_best()
            for line in where_the_models_are(self._best, self.run_folder, given_up):
                progress.say(line)
        self.trackers.close()
        return ending == "complete"

    def _train(self, progress: Progress) -> Literal["complete", "interrupted", "diverged"]:
        """Returns the steps from where the run stands."""
        steps, offset, window = self.config.steps, self._guard.data_offset, self._window
        share = BatchShard(
            self.accelerator.process_index, self.accelerator.num_processes, self.config.gradient_accumulation_steps
        )
        data = self.data.training_batches(self._done + offset, steps + offset, share)
        window.start_clock()
        progress.time_left.step_begins()
        for step, batches in enumerate(data, start=self._done):
            metrics = self.task.train_step([self._received(batch) for batch in batches], step)
            step_metrics, self._without_gradient = separate_skips(metrics)
            self._guard.count(bool(self._without_gradient))
            if self._without_gradient:
                window.add_skipped()
            else:
                window.add(step_metrics)
            done = self._done = step + 1
            progress.advance()
            if done % self.config.log_every == 0 or done == steps:
                self._log(done, progress)
            elif done == 1:
                self._show_first_step(progress)
            window.stop_clock()
            progress.time_left.step_ends()
            if self._guard.diverged:
                return "diverged"
            if (ending := self._after_step(done, progress)) is not None:
                return ending
            window.start_clock()
            progress.time_left.step_begins()
        return "complete"

    def _after_step(self, done: int, progress: Progress) -> Literal["complete", "interrupted", "diverged"] | None:
        """Evaluate, preview and save what is due, and see whether training ends here."""
        config, last = self.config, done == self.config.steps
        evaluating = last or _due(done, config.evaluate_every)
        previewing = last or _due(done, config.preview_every) or (done == 1 and config.preview_every > 0)
        if (evaluating or previewing) and self._is_broken():
            return "diverged"
        if evaluating:
            self._evaluate(done, progress)
            if not last and self._best.is_given_up(config.patience):
                last = previewing = True
                progress.say(f"step {done}: {config.patience} evaluations without a better one (loop.patience)")
        if previewing:
            with self._checkpoints.full_ema(self.accelerator.device):
                if self.accelerator.is_main_process:
                    self.trackers.preview(self.task.preview(self._preview_batch), done)
        # While steps are being skipped no checkpoint pushes out the older ones: those are what the run can go back to.
        self._save_waits |= _due(done, config.save_every)
        regular = (self._save_waits and not self._guard.skipping) or last
        interrupted = not last and self._should_stop(done)
        if not (regular or interrupted):
            return None
        if self._is_broken():
            return "diverged"
        self._report_skipped(progress)
        self._save(done, passing=not regular)
        if last:
            return "complete"
        if not interrupted:
            return None
        progress.say(f"stopped at step {done}, saved; run the same command to go on")
        return "interrupted"

    def _evaluate(self, done: int, progress: Progress) -> None:
        metrics = self._validation.metrics()
        self.trackers.log(metrics, done, "val")
        if isinstance(self.task, CountsCodes) and (counts := self.task.code_counts()) is not None:
            self.trackers.code_counts(counts, done)
        progress.say(f"step {done} held out  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        if self._best.improved_by(metrics, done, self._training_loss):
            self._checkpoints.save_best(self._best.evaluation())
            self._save_waits = True
        memorizing = about_memorizing(self._best, self._training_loss)
        for finding in self._findings_val.new_messages(memorizing):
            progress.say(f"step {done}: {finding}")
            self._record_event(done, {"event": "finding", "finding": finding})

    def _is_broken(self) -> bool:
        """Returns whether weights or other state are not finite, so that nothing may be saved or evaluated."""
        self._not_finite = self._checkpoints.not_finite()
        return bool(self._not_finite)

    def _log(self, done: int, progress: Progress) -> None:
        self._report_skipped(progress)
        metrics = all_reduce_mean(self.accelerator, self._window.means())
        rate, seconds = self._window.rate()
        self._seconds += seconds
        metrics["images_per_second"] = rate
        metrics["seconds"] = self._seconds
        if self._skipped:
            metrics["skipped_items"] = float(len(self._skipped))
        if self._guard.skipped_steps:
            metrics["skipped_steps"] = float(self._guard.skipped_steps)
        if self._window.skipped_share():
            metrics["skipped_share"] = self._window.skipped_share()
        self.trackers.log(metrics, done, "train")
        shown = {name: value for name, value in metrics.items() if name.startswith("loss") or name == "skipped_steps"}
        progress.report(done, shown, rate)
        self._window.clear()
        self._training_loss = training_loss(metrics)
        metrics |= {"step": done, "run_share": done / self.config.steps}
        for finding in self._findings.new_messages([*self.task.diagnose(metrics), *self._notes]):
            progress.say(f"step {done}: {finding}")
            self._record_event(done, {"event": "finding", "finding": finding})

    def _show_first_step(self, progress: Progress) -> None:
        """The metrics of the run's first step; they are in the first line's means too."""
        metrics = all_reduce_mean(self.accelerator, self._window.means())
        shown = {name: value for name, value in metrics.items() if name.startswith("loss")}
        progress.first(1, shown, self._window.rate()[1])

    def _has_ended(self) -> bool:
        return self._done >= self.config.steps or (self._done > 0 and self._best.is_given_up(self.config.patience))

    def _received(self, batch: Batch) -> Batch:
        self._newly_skipped += [item for item in batch.skipped if item.name not in self._skipped]
        return batch.to(self.accelerator.device)

    def _report_skipped(self, progress: Progress) -> None:
        """Name and count the unusable items that any process has met; an exchange between the processes."""
        for item in all_gather_object(self.accelerator, self._newly_skipped):
            if item.name not in self._skipped:
                self._skipped[item.name] = item.cause
                progress.say(f"skipped {item} ({len(self._skipped)} unusable so far)")
        self._newly_skipped.clear()

    def _resume(self) -> tuple[int, list[str]]:
        """Returns the step to go on from, and what there is to say about it."""
        step, said = self._checkpoints.newest()
        loop_state: dict[str, Any] = {"metrics_bytes": 0}
        if step:
            said += (changed := self._checkpoints.compare_identity(step))
            self._shown_changed = bool(changed)
            loop_state = self._restore(step)
            self._skipped = dict(loop_state["skipped"])
            self._guard.load_state_dict(loop_state["guard"])
            self._best.load_state_dict(loop_state["best"])
        if self.accelerator.is_main_process:
            length = loop_state["metrics_bytes"]
            said += self.run_folder.damaged_metrics(length, loop_state.get("metrics_lines", ()))
            self.run_folder.cut_metrics(length)
        return step, said

    def _restore(self, step: int) -> dict[str, Any]:
        """Everything as it was when the checkpoint of `step` was written; returns the loop's own part."""
        loop_state = self._checkpoints.restore(step)
        self._seconds = loop_state["seconds"]
        self._findings.load_state_dict(loop_state["findings"])
        self._findings_val.load_state_dict(loop_state.get("findings_val", {}))
        self._training_loss = loop_state.get("training_loss")
        return loop_state

    def _check_metric_to_keep_best(self) -> None:
        """Now, not at the first evaluation: that may be hours away. Raises ConfigError."""
        if self.config.keep_best is not None and not self._best.step:
            device = self.accelerator.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._best.check_metric(self._validation.trial())

    def _go_back(self, done: int, progress: Progress) -> int:
        """Rolls back to the last good checkpoint, with other data and random numbers. Raises TrainingDiverged if it
        cannot."""
        guard, limits = self._guard, self.config.guard
        seen = (
            f"{limits.max_skipped_in_a_row} steps in a row without a finite gradient "
            f"({', '.join(self._without_gradient)})"
        )
        if self._not_finite:
            seen = f"values that are not finite in {', '.join(self._not_finite)}"
        self._not_finite = []
        self._report_skipped(progress)
        if limits.max_skipped_in_a_row == 0:
            raise self._diverged(done, f"{seen}, and loop.guard.max_skipped_in_a_row 0 means never to go back")
        if guard.rollbacks >= limits.max_rollbacks:
            raise self._diverged(done, f"{seen}, and loop.guard.max_rollbacks is {limits.max_rollbacks}")
        step = self._checkpoints.last_good()
        if not step:
            raise self._diverged(done, f"{seen}, and there is no checkpoint from before (loop.save_every)")
        metrics_bytes = self._restore(step)["metrics_bytes"]
        guard.go_back(done, step)
        torch.manual_seed(torch.initial_seed() + done)
        if self.accelerator.is_main_process:
            self._checkpoints.checkpoints.discard_after(step)
            self.run_folder.cut_metrics(metrics_bytes)
        self._record_event(step, {"event": "rolled_back", "from": done, "to": step, "seen": seen})
        # Saved again at once: a run that is killed from here on has gone back already.
        self._save(step, passing=False)
        progress.go_back(step)
        progress.say(f"step {done}: {seen}; back to step {step}, past the batches that led here")
        return step

    def _diverged(self, done: int, reason: str) -> TrainingDiverged:
        advice = " ".join(self.task.diagnose({"skipped_share": 1.0}))
        self._record_event(done, {"event": "diverged", "seen": reason})
        return TrainingDiverged(f"training diverged at step {done}: {reason}. {advice}")

    def _record_event(self, step: int, event: dict[str, object]) -> None:
        if self.accelerator.is_main_process:
            self.run_folder.append_metrics({"step": step, "split": "event", **event})

    def _save(self, done: int, passing: bool) -> None:
        self._save_waits = False
        loop_state = {
            "seconds": self._seconds,
            "skipped": self._skipped,
            "guard": self._guard.state_dict(),
            "findings": self._findings.state_dict(),
            "findings_val": self._findings_val.state_dict(),
            "training_loss": self._training_loss,
            "best": self._best.state_dict(),
            "metrics_bytes": self.run_folder.metrics_bytes() if self.accelerator.is_main_process else 0,
            "metrics_lines": self.run_folder.metrics_lines() if self.accelerator.is_main_process else [],
        }
        about = CheckpointMeta(good=self._guard.reset_skips and not passing, passing=passing)
        self._checkpoints.save(done, loop_state, about, keep={self._best.step})

    def _should_stop(self, done: int) -> bool:
        if self.accelerator.num_processes == 1:
            return self._stop.made
        if done % _STEPS_BETWEEN_AGREEING_TO_STOP:
            return False
        flag = torch.tensor([float(self._stop.made)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
