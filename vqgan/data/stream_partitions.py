"""Training batches from a stream: which partition fills which places, and who reads it.

Of every micro-batch's b places (over all processes), partition l of L fills b/L: places l*b/L ... (l+1)*b/L - 1. So a
step takes batch_size/L items from each partition, whatever the number of processes, workers and micro-batches. Process
r of P reads partitions r*L/P ... (r+1)*L/P - 1 and divides them among its workers, each of which gives its part of a
micro-batch.
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
from vqgan.data.stream import EncodedSample, Stream

MAX_UNUSABLE_IN_A_ROW = 1000

ReadItem = Callable[[Sample, np.random.Generator | None, tuple[UnusableSample, ...]], Item]
"""Makes a batch's item of a source's sample and of the unusable ones before it; random only with a generator."""


def partitions_for(partitions: int, batch_size: int, processes: int, gradient_accumulation_steps: int) -> int:
    """Returns the number of partitions in use: the most that divide both `partitions` and the batch, so a function of
    the config alone.

    Raises DataError, with a number that fits, where it does not divide among the processes or within a micro-batch.
    """
    wanted, partitions = partitions, math.gcd(partitions, batch_size)
    micro_size = batch_size // gradient_accumulation_steps
    if partitions % processes == 0 and micro_size % partitions == 0:
        return partitions
    local = micro_size // processes
    fitting = [processes * count for count in range(1, local + 1) if local % count == 0]
    nearest = min(fitting, key=lambda count: (abs(count - wanted), count))
    raise DataError(
        f"data.partitions {wanted} makes {partitions} partitions of a batch of {batch_size}, which do not divide "
        f"among {processes} "
        f"processes x {gradient_accumulation_steps} micro-batches of {micro_size}; set data.partitions to {nearest}"
    )


class PartitionedBatches(IterableDataset[Batch | DataError]):
    """Parts of micro-batches from a stream, without end: from each worker in turn its part of the same micro-batch."""

    def __init__(
        self,
        stream: Stream,
        read: ReadItem,
        seed: int,
        partitions: range,
        of_partitions: int,
        per_partition: int,
        first: int,
    ) -> None:
        """Partitions `partitions` of `of_partitions`, `per_partition` items of each in a micro-batch, from its item
        `first` on."""
        self._stream = stream
        self._read = read
        self._seed = seed
        self._partitions = partitions
        self._of_partitions = of_partitions
        self._per_partition = per_partition
        self._first = first

    def __iter__(self) -> Iterator[Batch | DataError]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        count = len(self._partitions)
        mine = self._partitions[number * count // workers : (number + 1) * count // workers]
        # Raised in a worker, an error would arrive wrapped in that process's traceback: it travels as a value instead.
        try:
            rows = [self._items(partition) for partition in mine]
            while True:
                yield Batch.of([next(row) for row in rows for _ in range(self._per_partition)])
        except DataError as error:
            yield error

    def _items(self, partition: int) -> Iterator[Item]:
        """Yields a partition's items, an unusable one replaced by the next usable, so that an item's number says which
        it is."""
        undecoded = self._stream.partition(partition, self._of_partitions, self._seed, self._first)
        number = self._first
        while True:
            sample, skipped = _next_usable(undecoded)
            for place in range(len(skipped) + 1):
                rng = np.random.default_rng((self._seed, partition, number, 2))
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


def _next_usable(undecoded: Iterator[EncodedSample]) -> tuple[Sample, tuple[UnusableSample, ...]]:
    """Returns the next usable sample of a partition. Raises DataError where a whole pass, or many in a row, are
    unusable."""
    skipped: list[UnusableSample] = []
    times: Counter[str] = Counter()
    for item in undecoded:
        # The last of one epoch may be the first of the next; what comes for the third time has a whole epoch between.
        whole_pass = times[item.name] == 2
        if whole_pass or len(skipped) >= MAX_UNUSABLE_IN_A_ROW:
            where = "a whole pass over a partition of the stream" if whole_pass else "a partition of the stream"
            raise DataError(
                f"{len(skipped)} unusable items in a row in {where}, the first: {skipped[0]}; the last: {skipped[-1]}"
            )
        try:
            return item.load(), tuple(skipped)
        except UnusableSample as unusable:
            skipped.append(unusable.report())
            times[item.name] += 1
    raise AssertionError("a partition has no end")
