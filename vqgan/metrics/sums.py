"""Sums over an evaluation set that is shared between processes."""

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricSums:
    """Adds up named tensors batch by batch, then over the processes in one exchange each."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add `value` (any shape, the same at every call) to the sum called `name`."""
        value = value.detach().double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def totals(self) -> dict[str, Tensor]:
        """The sums over all processes. Every process must have added the same names."""
        if self._accelerator.num_processes == 1:
            return self._sums
        return {
            name: torch.as_tensor(self._accelerator.reduce(total, reduction="sum"))
            for name, total in self._sums.items()
        }
