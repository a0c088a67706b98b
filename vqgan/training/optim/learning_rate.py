"""The learning rate of a run that may be extended: a decayed rate does not increase again."""

from typing import Any

from vqgan.config.schedule import ScheduleConfig, in_steps, learning_rate_factor


class LearningRate:
    """A schedule over `steps`, whose state goes into the optimizer's.

    A finished run that goes on with a larger `loop.steps` has, by its schedule, a higher rate again, and forgets part
    of what it learned at the low one. So the rate that it had reached stays the highest from there on, unless the
    schedule itself is changed too. A run that is to be prolonged at its full rate decays late
    ({shape: linear, decay_from: 80%}): one that is stopped and prolonged before the decay goes on at that rate.
    """

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        self._config = config
        self._steps = steps
        self._reached = 1.0
        self._ceiling = 1.0

    def factor(self, step: int) -> float:
        """Returns what multiplies the full learning rate at `step` (0-based)."""
        factor = min(self._ceiling, learning_rate_factor(step, self._steps, self._config))
        if step >= in_steps(self._config.warmup, self._steps):
            self._reached = factor
        return factor

    def held_down(self, step: int) -> float | None:
        """Returns the factor at `step` where it is lower than the schedule says, because the run was prolonged."""
        scheduled = learning_rate_factor(step, self._steps, self._config)
        return self._ceiling if self._ceiling < scheduled else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "schedule": self._config.model_dump(mode="json"),
            "steps": self._steps,
            "reached": self._reached,
            "ceiling": self._ceiling,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reached, self._ceiling = state["reached"], state["ceiling"]
        if state["schedule"] != self._config.model_dump(mode="json"):
            self._ceiling = 1.0
        elif state["steps"] < self._steps:
            self._ceiling = self._reached
