"""Sums over an evaluation set that is shared between processes."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
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
        """Returns the sums over all processes. A process that had no batch takes part with zeros."""
        if self._accelerator.num_processes == 1:
            return self._sums
        shapes: dict[str, tuple[int, ...]] = {}
        for own in gather_object([{name: tuple(total.shape) for name, total in self._sums.items()}]):
            shapes |= own
        totals = {}
        for name, shape in sorted(shapes.items()):
            local_sum = self._sums.get(name, torch.zeros(shape, dtype=torch.float64))
            total = self._accelerator.reduce(local_sum.to(self._accelerator.device), reduction="sum")
            totals[name] = torch.as_tensor(total)
        return totals
