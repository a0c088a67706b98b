"""One pass over a data set in its own order, unusable items included: for evaluation and for checking data."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vqgan.data.source import Sample, Source, UnusableSample
from vqgan.data.stream import Stream

ItemT = TypeVar("ItemT")


def iterate(
    source: Source | Stream,
    read: Callable[[Sample], ItemT],
    workers: int = 0,
    indices: Sequence[int] | None = None,
    limit: int | None = None,
) -> Iterator[ItemT | UnusableSample]:
    """Yields what `read` makes of each sample; instead of an unusable one, the UnusableSample that says why.

    Args:
        source: read in its own order.
        read: called in the workers where there are some, so it can be pickled.
        workers: processes that read a `Source`; a `Stream` is read here.
        indices: which samples of a `Source`, by default all.
        limit: how many samples of a `Stream`, by default all.
    """
    if isinstance(source, Stream):
        for item in islice(source.iterate(), limit):
            try:
                yield read(item.load())
            except UnusableSample as unusable:
                yield unusable.report()
        return
    items = _Items(source, read, range(len(source)) if indices is None else indices)
    # A loader draws a seed for its workers: from a generator of its own, to leave the global one alone.
    yield from DataLoader[Any](items, batch_size=None, num_workers=workers, generator=torch.Generator())


class _Items(Dataset[ItemT | UnusableSample], Generic[ItemT]):
    """Returns unusable items as values: an exception would end the loader."""

    def __init__(self, source: Source, read: Callable[[Sample], ItemT], indices: Sequence[int]) -> None:
        self._source = source
        self._read = read
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> ItemT | UnusableSample:
        try:
            return self._read(self._source[self._indices[position]])
        except UnusableSample as unusable:
            return unusable.report()
