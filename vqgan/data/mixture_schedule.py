"""Whose turn it is: rows of items interleaved by weights, with random access.

At every point of the order each row has had its share to less than one item (Tijdeman, "The chairman assignment
problem", 1980), so in any stretch of it to less than two. The order is a cycle that repeats; nothing is sampled at
random, so position and turn follow from each other by arithmetic.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

LONGEST_CYCLE = 10_000
"""Weights whose exact cycle is longer are rounded to shares of this many turns, at least one each."""


class MixtureSchedule:
    """An endless order of rows 0 ... K - 1 by `weights`, all positive."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.turns = _turns(weights)
        """Turns of each row in one cycle, the weights in whole numbers."""
        self.cycle = _cycle(self.turns)
        """Whose turn it is at each position of one cycle."""
        ones = self.cycle[None, :] == np.arange(len(self.turns))[:, None]
        self._before = np.concatenate([np.zeros((len(self.turns), 1), np.int64), np.cumsum(ones, axis=1)], axis=1)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Whose turn it is at a position, and how many turns that row has had before."""
        row = int(self.cycle[position % len(self.cycle)])
        return row, self.counts(position)[row]

    def counts(self, position: int) -> list[int]:
        """Returns how many turns each row has had before a position."""
        cycles, rest = divmod(position, len(self.cycle))
        return [
            cycles * turns + before for turns, before in zip(self.turns, self._before[:, rest].tolist(), strict=True)
        ]


def _turns(weights: Sequence[float]) -> list[int]:
    """Returns weights as whole numbers without a common divisor; 0.3 is 3/10, as it was written."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(share.denominator for share in exact))
    turns = [int(share * scale) for share in exact]
    total = sum(turns)
    if total // math.gcd(*turns) > LONGEST_CYCLE:
        turns = [max(1, round(count * LONGEST_CYCLE / total)) for count in turns]
    divisor = math.gcd(*turns)
    return [count // divisor for count in turns]


def _cycle(turns: Sequence[int]) -> Int64[np.ndarray, "P"]:
    """One cycle: of the rows that may go without getting ahead, the one that would fall behind first."""
    total, slack = sum(turns), max(1, 2 * len(turns) - 2)
    wanted = np.array(turns, np.int64)
    had = np.zeros(len(turns), np.int64)
    cycle = np.zeros(total, np.int64)
    for position in range(total):
        may_go = (wanted * (position + 1) - had * total) * slack >= total
        deadline = (slack - 1 + slack * had) / wanted
        cycle[position] = np.where(may_go, deadline, np.inf).argmin()
        had[cycle[position]] += 1
    return cycle
