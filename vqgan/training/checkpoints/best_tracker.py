"""Tracks the best validation evaluation of a run."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from vqgan.config.schema import Config, ConfigError


class KeepBestConfig(Config, may_change=("metric", "mode")):
    """The metric by which the best model and checkpoint are kept."""

    metric: str = Field(min_length=1)
    """A metric of the validation evaluations, as the console and metrics.jsonl name it: psnr, nats_per_code."""
    mode: Literal["lower", "higher"]
    """Whether higher or lower values are better."""


class BestTracker:
    """The best evaluation so far; NaN never is, ties go to the first."""

    def __init__(self, config: KeepBestConfig | None) -> None:
        self.config = config
        self.step = 0
        """Step of the best evaluation; 0 before the first."""
        self.last_step = 0
        """Step of the last evaluation."""
        self.value = 0.0
        self.last_value = 0.0
        self.training_loss: float | None = None
        """Training loss at the best evaluation, if known."""
        self._without_better = 0

    def check_metric(self, metrics: Mapping[str, float]) -> None:
        """Raises ConfigError if `metrics` of an evaluation do not have the metric."""
        if self.config is not None and self.config.metric not in metrics:
            raise ConfigError(
                f"loop.keep_best.metric: {self.config.metric!r} is no metric of this run's validation evaluations; "
                f"choose one of {', '.join(sorted(metrics))}"
            )

    def improved_by(self, metrics: Mapping[str, float], step: int, training_loss: float | None = None) -> bool:
        """Records the evaluation after `step`; returns whether it is the best so far."""
        if self.config is None:
            return False
        self.check_metric(metrics)
        value, sign = metrics[self.config.metric], 1 if self.config.mode == "higher" else -1
        better = sign * value > sign * self.value if self.step else value == value
        self.last_step, self.last_value = step, value
        self._without_better = 0 if better else self._without_better + 1
        if better:
            self.step, self.value, self.training_loss = step, value, training_loss
        return better

    def is_given_up(self, patience: int) -> bool:
        """Returns whether the latest `patience` evaluations were no better than one before; never where it is 0.

        Nor where none could be compared yet: there is no best model that could stand for the run's.
        """
        return self.step > 0 and 0 < patience <= self._without_better

    def worsened_share(self) -> float:
        """Returns by which fraction of the best value the last one is worse."""
        assert self.config is not None
        worse = self.last_value - self.value if self.config.mode == "lower" else self.value - self.last_value
        return worse / max(abs(self.value), 1e-12)

    def describe(self) -> str:
        """For people: `nats_per_code 2.12 at step 400 (3.57 at step 1,200)`."""
        assert self.config is not None
        last = "" if self.step == self.last_step else f" ({self.last_value:.4g} at step {self.last_step:,})"
        return f"{self.config.metric} {self.value:.4g} at step {self.step:,}{last}"

    def evaluation(self) -> dict[str, object]:
        """Returns the best evaluation, for people and scripts."""
        assert self.config is not None
        return {"step": self.step, "metric": self.config.metric, "value": self.value, "mode": self.config.mode}

    def state_dict(self) -> dict[str, Any]:
        if self.config is None or not self.step:
            return {}
        since = {"last_step": self.last_step, "last_value": self.last_value, "without_better": self._without_better}
        return self.evaluation() | since | {"training_loss": self.training_loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state; if it is of another metric than the config's, the comparison starts again."""
        same = self.config is not None and (state.get("metric"), state.get("mode")) == (
            self.config.metric,
            self.config.mode,
        )
        self.step, self.value = (state["step"], state["value"]) if same else (0, 0.0)
        since = state if same else {}  # an earlier version wrote the best alone
        self.last_step, self.last_value = since.get("last_step", self.step), since.get("last_value", self.value)
        self._without_better, self.training_loss = since.get("without_better", 0), since.get("training_loss")
