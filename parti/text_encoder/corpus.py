"""Text-only corpus for masked tokens: a file of any size with one passage per line (Parti: C4)."""

import random
from pathlib import Path

import numpy as np

from vqgan.data.source import DataError

_CHUNK = 1 << 26
"""Bytes searched for line ends at once."""


class Corpus:
    """The non-empty lines of a UTF-8 text file; only their offsets are in memory.

    Raises DataError if there is none.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file() or not Path(path).stat().st_size:
            raise DataError(f"passages: no text in {str(path)!r}; give a text file with one passage a line")
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        ends = [
            np.flatnonzero(self._bytes[start : start + _CHUNK] == ord("\n")) + start
            for start in range(0, len(self._bytes), _CHUNK)
        ]
        stops = np.append(np.concatenate(ends), len(self._bytes))
        starts = np.append(0, stops[:-1] + 1)
        full = stops > starts
        self._starts, self._stops = starts[full], stops[full]
        if not len(self._starts):
            raise DataError(f"passages: {str(path)!r} has empty lines alone; give a text file with one passage a line")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:
        text = self._bytes[self._starts[index] : self._stops[index]].tobytes()
        return text.decode("utf-8", errors="replace").strip()

    def sample(self, seed: int, step: int, start: int, count: int) -> list[str]:
        """Samples `count` passages, with replacement, for the rows from `start` of the global batch of this step.

        A function of (seed, step, row), so it does not depend on how the batch is split between processes.
        """
        generators = (random.Random(f"{seed} {step} {row}") for row in range(start, start + count))
        return [self[generator.randrange(len(self))] for generator in generators]
