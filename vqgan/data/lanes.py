"""Training batches from a stream: which lane fills which places, and who reads it.

Of every micro-batch's b places (over all processes), lane l of L fills b/L: places l*b/L ... (l+1)*b/L - 1. So a step
takes batch_size/L items from each lane, whatever the number of processes, workers and micro-batches. Process r of P
reads lanes r*L/P ... (r+1)*L/P - 1 and divides them among its workers, each of which gives its part of a micro-batch.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch.utils.data import IterableDataset

from vqgan.data.batch import Batch, Item
from vqgan.data.source import DataError, Sample, UnusableSample
from vqgan.data.stream import Stream, Undecoded

MAX_UNUSABLE_IN_A_ROW = 1000

ReadItem = Callable[[Sample, np.random.Generator | None, tuple[UnusableSample, ...]], Item]
"""Makes a batch's item of a source's sample and of the unusable ones before it; random only with a generator."""


def lanes_for(lanes: int, batch_size: int, processes: int, micro_batches: int) -> int:
    """The number of lanes in use: the most that divide both `lanes` and the batch, so a function of the config alone.

    Raises DataError, with a number that fits, where it does not divide among the processes or within a micro-batch.
    """
    wanted, lanes = lanes, math.gcd(lanes, batch_size)
    micro_size = batch_size // micro_batches
    if lanes % processes == 0 and micro_size % lanes == 0:
        return lanes
    local = micro_size // processes
    fitting = [processes * count for count in range(1, local + 1) if local % count == 0]
    nearest = min(fitting, key=lambda count: (abs(count - wanted), count))
    raise DataError(
        f"data.lanes {wanted} makes {lanes} lanes of a batch of {batch_size}, which do not divide among {processes} "
        f"processes x {micro_batches} micro-batches of {micro_size}; set data.lanes to {nearest}"
    )


class LaneBatches(IterableDataset[Batch | DataError]):
    """Parts of micro-batches from a stream, without end: from each worker in turn its part of the same micro-batch."""

    def __init__(
        self, stream: Stream, read: ReadItem, seed: int, lanes: range, of_lanes: int, per_lane: int, first: int
    ) -> None:
        """Lanes `lanes` of `of_lanes`, `per_lane` items of each in a micro-batch, from its item `first` on."""
        self._stream = stream
        self._read = read
        self._seed = seed
        self._lanes = lanes
        self._of_lanes = of_lanes
        self._per_lane = per_lane
        self._first = first

    def __iter__(self) -> Iterator[Batch | DataError]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        count = len(self._lanes)
        mine = self._lanes[number * count // workers : (number + 1) * count // workers]
        # Raised in a worker, an error would arrive wrapped in that process's traceback: it travels as a value instead.
        try:
            rows = [self._items(lane) for lane in mine]
            while True:
                yield Batch.of([next(row) for row in rows for _ in range(self._per_lane)])
        except DataError as error:
            yield error

    def _items(self, lane: int) -> Iterator[Item]:
        """A lane's items, an unusable one replaced by the next usable, so that an item's number says which it is."""
        undecoded = self._stream.lane(lane, self._of_lanes, self._seed, self._first)
        number = self._first
        while True:
            sample, skipped = _next_usable(undecoded)
            for place in range(len(skipped) + 1):
                rng = np.random.default_rng((self._seed, lane, number, 2))
                yield self._read(sample, rng, () if place else skipped)
                number += 1


def joined(parts: Sequence[Batch]) -> Batch:
    """Parts of a micro-batch as one."""
    if len(parts) == 1:
        return parts[0]
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    return replace(parts[0], **{name: _concatenated(column) for name, column in values.items()})


def _concatenated(column: list[Any]) -> Any:
    if isinstance(column[0], torch.Tensor):
        return torch.cat(column)
    return type(column[0])(value for part in column for value in part)


def _next_usable(undecoded: Iterator[Undecoded]) -> tuple[Sample, tuple[UnusableSample, ...]]:
    """The next usable sample of a lane. Raises DataError where a whole pass, or many in a row, are unusable."""
    skipped: list[UnusableSample] = []
    times: Counter[str] = Counter()
    for item in undecoded:
        # The last of one epoch may be the first of the next; what comes for the third time has a whole epoch between.
        whole_pass = times[item.name] == 2
        if whole_pass or len(skipped) >= MAX_UNUSABLE_IN_A_ROW:
            where = "a whole pass over a lane of the stream" if whole_pass else "a lane of the stream"
            raise DataError(
                f"{len(skipped)} unusable items in a row in {where}, the first: {skipped[0]}; the last: {skipped[-1]}"
            )
        try:
            return item.load(), tuple(skipped)
        except UnusableSample as unusable:
            skipped.append(unusable.report())
            times[item.name] += 1
    raise AssertionError("a lane has no end")
