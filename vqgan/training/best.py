"""Which held-out evaluation of a run was the best."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from vqgan.config import Config, ConfigError


class KeepBestConfig(Config, may_change=("figure", "mode")):
    """Which model and checkpoint are kept beside the newest."""

    figure: str = Field(min_length=1)
    """A figure of the held-out evaluations, as the console and metrics.jsonl name it: psnr, nats_per_code."""
    mode: Literal["lower", "higher"]
    """Which values of it are better."""


class Best:
    """The best evaluation so far. One that is not a number never is; of equal ones it is the first."""

    def __init__(self, config: KeepBestConfig | None) -> None:
        self.config = config
        self.step = 0
        """After which the best evaluation was; 0: none yet."""
        self._value = 0.0

    def check_figure(self, figures: Mapping[str, float]) -> None:
        """Raises ConfigError where the evaluations, of which `figures` is one, do not have the figure."""
        if self.config is not None and self.config.figure not in figures:
            raise ConfigError(
                f"loop.keep_best.figure: {self.config.figure!r} is no figure of this run's held-out evaluations; "
                f"choose one of {', '.join(sorted(figures))}"
            )

    def improved_by(self, figures: Mapping[str, float], step: int) -> bool:
        """Take note of the evaluation after `step`; whether it is the best so far."""
        if self.config is None:
            return False
        self.check_figure(figures)
        value, sign = figures[self.config.figure], 1 if self.config.mode == "higher" else -1
        better = sign * value > sign * self._value if self.step else value == value
        if better:
            self.step, self._value = step, value
        return better

    def evaluation(self) -> dict[str, object]:
        """The best one, for people and scripts to read."""
        assert self.config is not None
        return {"step": self.step, "figure": self.config.figure, "value": self._value, "mode": self.config.mode}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.config is None or not self.step else self.evaluation()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of another figure than this config's nothing is taken: the comparison begins anew."""
        same = self.config is not None and (state.get("figure"), state.get("mode")) == (
            self.config.figure,
            self.config.mode,
        )
        self.step, self._value = (state["step"], state["value"]) if same else (0, 0.0)
