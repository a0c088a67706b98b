"""Handles training steps without a finite gradient: skip, roll back, stop with an explanation.

A single step without a finite gradient is skipped by `Optimizer.step`, and the guard counts it. Several in a row mean
that the weights are diverging. Then the loop rolls back to the last good checkpoint. Runs are deterministic, so the
same steps would fail again: the batches that led there are skipped, as PaLM did at its loss spikes (arXiv 2204.02311,
section 5.1), and random numbers are new. Departure from PaLM: it went back about 100 steps, here it is to the last
checkpoint, and only for non-finite gradients.
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config
from vqgan.errors import UserError


class NaNGuardConfig(Config, may_change=("max_skipped_in_a_row", "max_rollbacks")):
    """What to do about steps without a finite gradient; each of them is skipped and counted in any case."""

    max_skipped_in_a_row: int = Field(10, ge=0)
    """Skipped steps in a row after which the run rolls back to its last good checkpoint, or stops; 0: never."""
    max_rollbacks: int = Field(1, ge=0)
    """Number of rollbacks in the whole run before it stops with an explanation."""


class TrainingDiverged(UserError, ValueError):
    """Training diverged; the message is one line for the user."""


class NaNGuard:
    """Counts skipped steps and the offset in the data; the same on every process."""

    def __init__(self, config: NaNGuardConfig) -> None:
        self.config = config
        self.skipped_steps = 0
        """Skipped steps of the whole run, including those before a rollback."""
        self.rollbacks = 0
        self.data_offset = 0
        """Number of skipped batches: step s reads batch s + data_offset."""
        self._in_a_row = 0
        self._until_calm = 0

    def count(self, skipped: bool) -> None:
        """Records a step."""
        if skipped:
            self.skipped_steps += 1
            self._in_a_row += 1
            self._until_calm = self.config.max_skipped_in_a_row
        else:
            self._in_a_row = 0
            self._until_calm = max(0, self._until_calm - 1)

    @property
    def skipping(self) -> bool:
        """Whether the last step was skipped."""
        return self._in_a_row > 0

    @property
    def reset_skips(self) -> bool:
        """Whether a checkpoint of this moment is good for a rollback: none of the last steps was skipped."""
        return not self.skipping and self._until_calm == 0

    @property
    def diverged(self) -> bool:
        """Whether too many steps in a row were skipped to continue from here."""
        return 0 < self.config.max_skipped_in_a_row <= self._in_a_row

    def go_back(self, done: int, to: int) -> None:
        """After `done` steps the run goes on behind step `to`, with the data that would have come now."""
        self.rollbacks += 1
        self.data_offset += done - to
        self._in_a_row = self._until_calm = 0

    def state_dict(self) -> dict[str, int | bool]:
        return {
            "skipped_steps": self.skipped_steps,
            "rollbacks": self.rollbacks,
            "data_offset": self.data_offset,
            "in_a_row": self._in_a_row,
            "until_calm": self._until_calm,
        }

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        self.skipped_steps, self.rollbacks = state["skipped_steps"], state["rollbacks"]
        self.data_offset = state["data_offset"]
        self._in_a_row, self._until_calm = state["in_a_row"], state["until_calm"]


def separate_skips(metrics: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a step's metrics without the `skipped` flags of its networks, and the names of the networks whose flag is
    set.

    Not of those that `overflowed`: in fp16 that is how a loss scale is found, and no sign of divergence. Losses of such
    a step may not be finite, so no other metrics are given. The flags lie in the host's memory (see
    `Optimizer.step`): to read them waits for nothing.
    """
    flags = [name for name in metrics if name == "skipped" or name.endswith("_skipped")]
    step_metrics = {name: value for name, value in metrics.items() if name not in flags}
    overflowed = [name for name, value in metrics.items() if name.endswith("overflowed") and value.item()]
    if overflowed:
        step_metrics = {
            name: value for name, value in step_metrics.items() if name.endswith(("overflowed", "loss_scale"))
        }
    excused = [name.removesuffix("overflowed") + "skipped" for name in overflowed]
    skipped = [name for name in flags if metrics[name].item() and name not in excused]
    return step_metrics, [name.removesuffix("skipped").removesuffix("_") or "model" for name in skipped]
