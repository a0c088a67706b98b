"""Metrics between two log lines: means without skipped steps, and the rate."""

import time
from typing import Any

import torch
from torch import Tensor


class MetricAccumulator:
    """Sums of the metrics since the last log line, on the device, to avoid a synchronization at every step."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.clear()

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the metrics of a step."""
        self._steps += 1
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros((), device=value.device), 0))
            self._sums[name] = (total.to(value.device) + value.detach().float(), count + 1)

    def add_skipped(self) -> None:
        """Counts a skipped step, whose metrics are not finite."""
        self._steps += 1
        self._skipped += 1

    def means(self) -> dict[str, Tensor]:
        """Returns the means; a metric that only some steps have (R1, adversarial) is averaged over those."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def skipped_share(self) -> float:
        """Returns the share of the steps that were skipped."""
        return self._skipped / max(self._steps, 1)

    def start_clock(self) -> None:
        """Resumes the clock."""
        self._started = time.monotonic()

    def stop_clock(self) -> None:
        """Stops the clock: what follows (evaluation, saving) does not count into the rate."""
        self._seconds += time.monotonic() - self._started

    def rate(self) -> tuple[float, float]:
        """Returns images per second over all processes, and the seconds themselves, while the clock runs."""
        seconds = self._seconds + time.monotonic() - self._started
        return self._steps * self._batch_size / max(seconds, 1e-9), seconds

    def clear(self) -> None:
        """Resets the sums, with the clock running."""
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._steps = 0
        self._skipped = 0
        self._seconds = 0.0
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "steps": self._steps, "skipped": self._skipped, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._steps = state["sums"], state["steps"]
        self._skipped, self._seconds = state["skipped"], state["seconds"]
