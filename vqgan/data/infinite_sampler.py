"""An indexable source without end: epoch after epoch, each in its own seeded order."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64


class InfiniteSampler:
    """Which of `count` items stands at a position: a function of (seeds, position) alone."""

    def __init__(self, count: int, seeds: tuple[int, ...]) -> None:
        self._count = count
        self._seeds = seeds
        self._epoch = -1
        self._order: Int64[np.ndarray, "N"] = np.zeros(0, np.int64)

    def from_position(self, position: int) -> Iterator[int]:
        """Returns the item at a position, then, each once, the others of its epoch in order, which stand in for broken
        ones."""
        epoch, slot = divmod(position, self._count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((*self._seeds, epoch)).permutation(self._count)
        order = self._order
        return (int(order[(slot + offset) % self._count]) for offset in range(self._count))
