"""Loss scale of one network for training in fp16, whose smallest number is 6e-8.

The rules are those of torch.amp.GradScaler (Micikevicius et al., 1710.03740, section 3.2): halved where a gradient is
not finite, doubled after 2000 updates in a row. Not that class itself, because it decides by what the tensors of one
process show, while here the decision must be one of all processes, and `Optimizer.step` has made it already.

Generator and discriminator have separate scales: their losses differ by orders of magnitude, and an overflow of one
should not skip the update of the other.
"""

from typing import Any

import torch
from torch import Tensor

INITIAL = 2.0**16
LOWEST, HIGHEST = 1.0, 2.0**24
UPDATES_BETWEEN_DOUBLINGS = 2000


class LossScale:
    """`value` is what the loss is multiplied by, and what its gradients are to be divided by; 1 without `fp16`."""

    def __init__(self, fp16: bool = True) -> None:
        self.fp16 = fp16
        self.value = INITIAL if fp16 else 1.0
        self._finite_in_a_row = 0

    @property
    def is_lowest(self) -> bool:
        """Whether an overflow can no longer be due to the scale."""
        return self.value <= LOWEST

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients of the scaled loss, in place."""
        if self.fp16:
            torch._foreach_mul_(gradients, 1 / self.value)

    def settle(self, is_finite: bool) -> dict[str, Tensor]:
        """`adapt`, and what there is to log of it: the scale that was, and whether it may be what `overflowed`."""
        if not self.fp16:
            return {}
        overflowed = not is_finite and not self.is_lowest
        metrics = {"loss_scale": torch.tensor(self.value), "overflowed": torch.tensor(float(overflowed))}
        self.adapt(is_finite)
        return metrics

    def adapt(self, is_finite: bool) -> None:
        """Adapts the scale after an update: were all gradients finite?"""
        self._finite_in_a_row = self._finite_in_a_row + 1 if is_finite else 0
        if not is_finite:
            self.value = max(self.value / 2, LOWEST)
        elif self._finite_in_a_row == UPDATES_BETWEEN_DOUBLINGS:
            self.value = min(self.value * 2, HIGHEST)
            self._finite_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "finite_in_a_row": self._finite_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self._finite_in_a_row = state["value"], state["finite_in_a_row"]
