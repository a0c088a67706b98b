"""Data that is read from front to back, in partitions.

A partition is a fixed part of a stream's items: partition l of L. Every batch takes the same number of items from each
partition, so what a step sees depends on the number of partitions alone, never on how many processes and workers read
them; each of those reads only its own partitions. A partition is an endless row of numbered items: pass after pass over
its part, every pass in another seeded order, nothing twice and nothing left out within a pass.

Items come undecoded, so that a resumed run skips what it has seen without decoding it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from vqgan.data.captions import all_captions
from vqgan.data.source import DataError, Sample, UnusableSample

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedSample:
    """An item of a stream before its image is decoded; `load` may raise UnusableSample, and may be called again."""

    name: str
    load: Callable[[], Sample]
    read_captions: Callable[[], tuple[str, ...]] | None = None
    """Its captions without its image, where that is possible; raises what `load` does."""

    def captions(self) -> tuple[str, ...]:
        """All that training may show with its image. Raises UnusableSample."""
        return all_captions(self.load()) if self.read_captions is None else self.read_captions()


def broken_sample(name: str, cause: str) -> EncodedSample:
    """Returns an item of which it is known already that it is not usable."""

    def load() -> Sample:
        raise UnusableSample(name, cause)

    return EncodedSample(name, load)


@runtime_checkable
class Stream(Protocol):
    """Samples without an index."""

    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:
        """Returns the items of one of `partitions` partitions from number `start` on, without end; a function of the
        arguments alone.

        Raises DataError where the partition has no item.
        """
        ...

    def iterate(self) -> Iterator[EncodedSample]:
        """Returns every item once, in the data's own order."""
        ...


def evaluation_order(stream: Stream) -> Iterator[EncodedSample]:
    """Returns every item once, from as many places at a time as the stream can be read at.

    A stream is not shuffled: its beginning is no random sample, but by this it is not of one place either.
    """
    spread = getattr(stream, "spread", None)
    items: Iterator[EncodedSample] = stream.iterate() if spread is None else spread()
    return items


def interleave(parts: Sequence[Callable[[], Iterator[T]]], at_once: int = 8) -> Iterator[T]:
    """Yields the items of all parts, one from each of `at_once` open parts in turn; the parts in a fixed random
    order."""
    order = np.random.default_rng(0).permutation(len(parts))
    waiting = iter([parts[number] for number in order])
    open_parts = [part() for part in islice(waiting, at_once)]
    while open_parts:
        going = []
        for part in open_parts:
            row: Iterator[T] | None = part
            while row is not None:
                item = next(row, _END)
                if item is not _END:
                    yield item  # type: ignore[misc]
                    going.append(row)
                    break
                following = next(waiting, None)
                row = None if following is None else following()
        open_parts = going


_END = object()


class PartitionReader(ABC):
    """What one partition reads: a finite part of a data set, in another order every epoch."""

    @abstractmethod
    def epoch(self, order: np.random.Generator, skip: int) -> tuple[int, Iterator[EncodedSample]]:
        """Returns one epoch, its files in the order by `order`: the number of items left out, and those after them.

        As many are left out, up to `skip`, as can be skipped for free.
        """


def infinite(part: PartitionReader, partition: int, seed: int, start: int, buffer: int) -> Iterator[EncodedSample]:
    """Epoch after epoch of a partition from item `start` on, shuffled within blocks of `buffer` items.

    Blocks, not a reservoir: what is in a block depends on its number alone, so a resumed run begins at a block.
    Raises DataError where an epoch is empty.
    """
    epoch = 0
    while True:
        order = np.random.default_rng((seed, partition, epoch))
        passed, items = part.epoch(order, start // buffer * buffer)
        passed += sum(1 for _ in islice(items, -passed % buffer))  # on to the beginning of a block
        for item in block_shuffle(items, buffer, (seed, partition, epoch), passed // buffer):
            if passed >= start:
                yield item
            passed += 1
        if not passed:
            raise DataError(f"partition {partition} of the stream has no items; lower data.partitions or add data")
        # All epochs are as long as this one: whole ones on the way to `start` are not read.
        start = max(0, start - passed)
        epoch, start = epoch + 1 + start // passed, start % passed


def block_shuffle(items: Iterator[T], size: int, seeds: tuple[int, ...], first: int = 0) -> Iterator[T]:
    """`items` in a seeded order within each block of `size`, the first of which has number `first`.

    For every item that leaves, one of the next block is read, so that at most `size` are held and none waits long.
    """
    ahead = list(islice(items, size))
    number = first
    while ahead:
        order = np.random.default_rng((*seeds, number, 1)).permutation(len(ahead))
        block: list[T] = [ahead[index] for index in order[::-1]]
        ahead, number = [], number + 1
        while block:
            ahead.extend(islice(items, 1))
            yield block.pop()


def shards_of_partition(shards: int, partition: int, partitions: int) -> list[tuple[int, int, int]]:
    """Returns what of which shards a partition reads: (shard, first, step) for items first, first + step, ... of that
    shard.

    Fewer shards than partitions: each partition takes every L-th item of every shard. Else shards l, l + L, ... while
    they come in full rounds of L; each of the last S mod L is shared by neighboring partitions, so that no partition
    has a shard more.
    """
    if shards < partitions:
        return [(shard, partition, partitions) for shard in range(shards)]
    whole = [(shard, 0, 1) for shard in range(partition, shards // partitions * partitions, partitions)]
    rest = shards % partitions
    if not rest:
        return whole
    shared = partition * rest // partitions
    sharers = [other for other in range(partitions) if other * rest // partitions == shared]
    return [*whole, (shards - rest + shared, sharers.index(partition), len(sharers))]
