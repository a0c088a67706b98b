"""Several data sets as one, by weights: whatever their sizes, a stretch of the order shows them as the weights say.

Each source goes through epochs of its own, in orders of its own; who stands at which position is arithmetic
(`MixtureSchedule`). So the order is a function of (sources, weights, seed, position), of indexable sources and of
streams.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from vqgan.config.schema import Config
from vqgan.data.captions import all_captions
from vqgan.data.infinite_sampler import InfiniteSampler
from vqgan.data.mixture_schedule import MixtureSchedule
from vqgan.data.source import Sample, Source, UnusableSample
from vqgan.data.stream import EncodedSample, Stream, evaluation_order
from vqgan.data.unused import Unused, unused_in

if TYPE_CHECKING:
    from vqgan.data.sources.open_source import SourceConfig

_GOLDEN = 0.6180339887498949


class MixedSourceConfig(Config, may_change=("weight", "name")):
    """One data set of a mixture."""

    weight: float = Field(1.0, gt=0, le=1e6)
    """How often it is shown, beside the other weights: 3 of 3 and 1 is three quarters."""
    name: str | None = None
    """What its samples' names begin with; null: its number in the list and its kind."""
    source: "SourceConfig"
    """The data set."""


class MixtureConfig(Config, may_change=("kind", "sources")):
    """Several data sets, mixed by weights."""

    kind: Literal["mixture"] = "mixture"
    """A list of other data sets."""
    sources: tuple[MixedSourceConfig, ...] = Field(strict=False)
    """[{weight: 3, source: {kind: folder, path: a}}, {weight: 1, source: {kind: folder, path: b}}]. Each goes through
    epochs of its own: a small one with a large weight is repeated."""

    @model_validator(mode="after")
    def _check_sources(self) -> "MixtureConfig":
        if any(isinstance(part.source, MixtureConfig) for part in self.sources):
            raise ValueError("a mixture inside of a mixture: put its data sets into the outer list")
        names = self.names()
        if not names:
            raise ValueError("a mixture of no data sets: give sources at least one, as {weight: 1, source: {...}}")
        if len(set(names)) < len(names):
            raise ValueError(f"two data sets of the mixture have the same name: {', '.join(names)}; set other names")
        return self

    def names(self) -> list[str]:
        """Returns what each source is called."""
        return [part.name or f"{number} {part.source.kind}" for number, part in enumerate(self.sources, start=1)]


class Mixture:
    """Indexable sources as one. Training takes `turns` and the `sources` by themselves; the index is for one pass.

    A pass has the same order of turns, in which a source that has no more items is left out, so that its beginning
    (validation images, the captions that a vocabulary is learned from) is mixed as well.
    """

    def __init__(self, sources: Sequence[Source], names: Sequence[str], weights: Sequence[float]) -> None:
        self.turns = MixtureSchedule(weights)
        """Position in an endless run -> number of the source, and its own position there."""
        self.sources = [_Named(source, name) for source, name in zip(sources, names, strict=True)]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Sample:
        number, own = self._place(index)
        return self.sources[number][own]

    @property
    def unused(self) -> tuple[Unused, ...]:
        """What its sources skip."""
        return unused_in(*self.sources)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, where a source can give them so."""
        number, own = self._place(index)
        return self.sources[number].captions(own)

    def shares(self, count: int) -> list[tuple[Source, int]]:
        """Returns each source, and how many of `count` samples are its by the weights."""
        return list(zip(self.sources, self.turns.counts(count), strict=True))

    def _place(self, index: int) -> tuple[int, int]:
        """Source and own index of sample `index` of a pass: found by bisection of its position in the endless order."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        low, high = index, index + 1
        while self._shown(high) <= index:
            high *= 2
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self._shown(middle) <= index else (low, middle)
        return self.turns[low]

    def _shown(self, position: int) -> int:
        """Returns how many samples of a pass stand before a position of the endless order."""
        return sum(map(min, self.turns.counts(position), map(len, self.sources)))


class MixtureStream:
    """Streams, and perhaps indexable sources, as one stream."""

    def __init__(self, sources: Sequence[Source | Stream], names: Sequence[str], weights: Sequence[float]) -> None:
        self._turns = MixtureSchedule(weights)
        self._sources = list(sources)
        self._names = list(names)

    @property
    def unused(self) -> tuple[Unused, ...]:
        """What its sources have skipped so far."""
        parts = zip(self._sources, self._names, strict=True)
        return tuple(unused.within(name) for source, name in parts for unused in unused_in(source))

    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:
        """Yields the partition's items from number `start` on: of each source its own partition, by the weights.

        Every partition begins elsewhere in the cycle of turns, or one batch would take the same source from all of
        them. Raises DataError where a source has no item in this partition.
        """
        offset = int(partition * _GOLDEN % 1 * len(self._turns.cycle))
        passed = zip(self._turns.counts(offset + start), self._turns.counts(offset), strict=True)
        starts = [count - before for count, before in passed]
        rows = [
            self._partition_of(
                number, partition, partitions, int(np.random.default_rng((seed, number)).integers(2**31)), own_start
            )
            for number, own_start in enumerate(starts)
        ]
        position = offset + start
        while True:
            yield next(rows[self._turns[position][0]])
            position += 1

    def shares(self, count: int) -> list[tuple[Source | Stream, int]]:
        """Returns each source, and how many of `count` samples are its by the weights."""
        return list(zip(self._sources, self._turns.counts(count), strict=True))

    def iterate(self) -> Iterator[EncodedSample]:
        """Returns every item once, by the weights until a source ends, then without it."""
        return self._mixed(lambda stream: stream.iterate())

    def spread(self) -> Iterator[EncodedSample]:
        """Returns the same, of each stream from as many places at a time as it can be read at."""
        return self._mixed(evaluation_order)

    def _mixed(self, read: Callable[[Stream], Iterator[EncodedSample]]) -> Iterator[EncodedSample]:
        rows: list[Iterator[EncodedSample] | None] = [
            self._row_of(number, read) for number in range(len(self._sources))
        ]
        position = 0
        while any(rows):
            number = self._turns[position][0]
            position += 1
            row = rows[number]
            item = next(row, None) if row is not None else None
            if item is None:
                rows[number] = None
            else:
                yield item

    def _partition_of(
        self, number: int, partition: int, partitions: int, seed: int, start: int
    ) -> Iterator[EncodedSample]:
        source, name = self._sources[number], self._names[number]
        if isinstance(source, Stream):
            yield from (_named_item(item, name) for item in source.partition(partition, partitions, seed, start))
            return
        # Every L-th position of an endless order: within an epoch each item stands in one partition alone.
        order = InfiniteSampler(len(source), (seed,))
        position = start * partitions + partition
        while True:
            yield _item_at(source, next(order.from_position(position)), name)
            position += partitions

    def _row_of(self, number: int, read: Callable[[Stream], Iterator[EncodedSample]]) -> Iterator[EncodedSample]:
        source, name = self._sources[number], self._names[number]
        if isinstance(source, Stream):
            return (_named_item(item, name) for item in read(source))
        return (_item_at(source, index, name) for index in range(len(source)))


def mix(config: MixtureConfig, sources: Sequence[Source | Stream]) -> Mixture | MixtureStream:
    """One split of a mixture: indexable if all its sources are."""
    weights = [part.weight for part in config.sources]
    indexable = [source for source in sources if isinstance(source, Source)]
    if len(indexable) == len(sources):
        return Mixture(indexable, config.names(), weights)
    return MixtureStream(sources, config.names(), weights)


class _Named:
    """A source whose samples, and what is unusable, have names that begin with the source's."""

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return _item_at(self._source, index, self._name).load()

    @property
    def unused(self) -> tuple[Unused, ...]:
        return tuple(unused.within(self._name) for unused in unused_in(self._source))

    def captions(self, index: int) -> tuple[str, ...]:
        read = getattr(self._source, "captions", None)
        return read(index) if read else all_captions(self._source[index])


def _item_at(source: Source, index: int, name: str) -> EncodedSample:
    alone = getattr(source, "captions", None)
    captions = None if alone is None else lambda: alone(index)
    return _named_item(EncodedSample(f"item {index}", lambda: source[index], captions), name)


def _named_item(item: EncodedSample, name: str) -> EncodedSample:
    def load() -> Sample:
        try:
            sample = item.load()
        except UnusableSample as unusable:
            raise UnusableSample(f"{name}: {unusable.name}", unusable.cause) from None
        return Sample(sample.image, sample.caption, f"{name}: {sample.name}", sample.captions)

    return EncodedSample(f"{name}: {item.name}", load, item.read_captions)
