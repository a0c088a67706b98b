"""Captions of a sample that is spread over a whole data set, for a text vocabulary to be learned from.

The first ones would not do: many data sets are ordered by class or by source. No image is decoded, and where a source
can give captions alone none is read. The sample is a function of the data set and the number asked for, not of the
run's seed: an encoded data set and the runs on it have the same vocabulary.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from vqgan.data.captions import all_captions
from vqgan.data.source import DataError, Source, UnusableSample
from vqgan.data.sources.mixture import Mixture, MixtureStream
from vqgan.data.stream import EncodedSample, Stream

_SEED = 0
_PARTS = 64
"""Files of a stream that are begun, where it has so many: to open one takes longer than to read some rows of it."""
_READ_FOR_EACH = 4
"""Items of a file behind an address that are passed for each that is taken: all of them would be the whole data set."""
_FAILED_PARTS = 5
"""So many files in a row of which nothing can be read end the search: then it is not the files."""


@runtime_checkable
class CaptionParts(Protocol):
    """A stream that can be entered at several places."""

    @property
    def parts(self) -> int:
        """Its files."""
        ...

    def captions_of(self, part: int) -> Iterator[EncodedSample]:
        """Returns the items of one of them, for their captions alone."""
        ...

    def is_local(self, part: int) -> bool:
        """Returns whether all of it can be read in little time."""
        ...


def sampled_captions(source: Source | Stream, count: int) -> Iterator[tuple[str, ...]]:
    """Yields the captions of up to `count` samples, of those that have any; in a mixture by its weights.

    Raises DataError where nothing can be read of several files in a row.
    """
    if isinstance(source, Mixture | MixtureStream):
        for part, share in source.shares(count):
            yield from sampled_captions(part, share)
    elif isinstance(source, Stream):
        yield from _of_stream(source, count)
    else:
        yield from _of_indexed(source, count)


def _of_indexed(source: Source, count: int) -> Iterator[tuple[str, ...]]:
    """Of a random sample, in the order of the data set: neighbors lie in one file."""
    captions = getattr(source, "captions", None)
    numbers = np.arange(len(source))
    if count < len(source):
        numbers = np.sort(np.random.default_rng(_SEED).choice(len(source), count, replace=False))
    for number in numbers.tolist():
        try:
            found = captions(number) if captions else all_captions(source[number])
        except UnusableSample:
            continue
        if found:
            yield found


def _of_stream(stream: Stream, count: int) -> Iterator[tuple[str, ...]]:
    if not isinstance(stream, CaptionParts):
        yield from _evenly(stream.iterate(), count, _READ_FOR_EACH * count)
        return
    left, failed = count, 0
    for number, part in enumerate(_spread(stream.parts)):
        wanted = -(-left // max(1, min(_PARTS, stream.parts) - number))
        limit = None if stream.is_local(part) else _READ_FOR_EACH * wanted
        last: list[UnusableSample] = []
        found = _evenly(stream.captions_of(part), wanted, limit, last)
        yield from found
        left -= len(found)
        if left <= 0:
            return
        failed = failed + 1 if last and not found else 0
        if failed == _FAILED_PARTS:
            raise DataError(
                f"no caption can be read of {failed} files of the stream in a row, the last {last[-1]}; check paths "
                "and whether the server is up"
            )


def _evenly(
    items: Iterator[EncodedSample], wanted: int, limit: int | None, unusable: list[UnusableSample] | None = None
) -> list[tuple[str, ...]]:
    """Returns the captions of `wanted` of the first `limit` items, at even distances, whose number nobody knows
    beforehand.

    Every s-th item is kept; whenever there are twice as many as wanted, s doubles and every second one goes.
    """
    kept: list[tuple[str, ...]] = []
    distance = 1
    for number, item in enumerate(islice(items, limit)):
        if number % distance:
            continue
        try:
            kept.append(item.captions())
        except UnusableSample as broken:
            kept.append(())
            if unusable is not None:
                unusable[:] = [broken.report()]
        if len(kept) == 2 * wanted:
            kept, distance = kept[::2], 2 * distance
    with_captions = [captions for captions in kept if captions]
    if len(with_captions) <= wanted:
        return with_captions
    return [with_captions[place] for place in (np.arange(wanted) * len(with_captions) // wanted).tolist()]


def _spread(count: int) -> Iterator[int]:
    """0 ... count - 1, of which any first ones lie at nearly even distances (bits in reverse: van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    for number in range(1 << bits):
        place = int(f"{number:0{bits}b}"[::-1], 2)
        if place < count:
            yield place
