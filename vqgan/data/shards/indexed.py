"""Local shards with an index.

Each shard is scanned once by its headers; then every sample is read by its offset. So the whole data set is shuffled
in every epoch, and a resumed run reads nothing twice.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from vqgan.data.shards.index import read_indexes
from vqgan.data.shards.names import short_name
from vqgan.data.shards.passed_over import unused_of
from vqgan.data.shards.samples import LARGEST_MEMBER, SampleReader, ShardsConfig, loss
from vqgan.data.source import DataError, Sample, Split, UnusableSample
from vqgan.data.split import items_of_split

_OPEN_SHARDS = 64


class Shards:
    """Local shards with an index. Raises DataError when no sample is in them, or no caption and `require_captions`.

    `chosen` is the split to choose from the shards by the samples' keys, None for all samples.
    """

    def __init__(
        self,
        config: ShardsConfig,
        shards: list[str],
        chosen: Split | None,
        *,
        require_captions: bool = False,
        min_side: int | None = None,
    ) -> None:
        self._reader = SampleReader(config, require_captions, min_side)
        self._paths = shards
        self._names = [short_name(path) for path in shards]
        self._keys: list[_Keys] = []
        self._refused: dict[tuple[int, int], str] = {}
        passed = {}
        scores, numbers, places = [], [], []
        for shard, index in enumerate(read_indexes(shards)):
            passed[self._names[shard]] = index.passed
            keys = [key.encode("utf-8", "surrogateescape") for key in index.keys]
            table = np.concatenate([index.members(config.image_keys), index.members(self._reader.caption_endings)], 1)
            if index.broken is not None:  # one more item, to be counted and named when its turn comes
                keys.append(b"")
                table = np.concatenate([table, np.full((1, 4), -1)])
                _, fate = loss(self._names[shard], len(index.keys))
                self._refused[shard, len(index.keys)] = f"{fate}: {index.broken}"
            self._refused |= {(shard, number): cause for number, cause in index.refused.items()}
            self._keys.append(_Keys(keys))
            scores.append(np.append(index.scores, [1.0] * (len(keys) - len(index.keys))))
            numbers.append(np.stack([np.full(len(keys), shard), np.arange(len(keys))], axis=1))
            places.append(table)
        self._numbers, self._places = np.concatenate(numbers), np.concatenate(places)
        usable = np.flatnonzero(self._places[:, 0] >= 0)
        if not len(usable):
            cause = next(iter(self._refused.values()), f"none of {', '.join(config.image_keys)} is in them")
            raise DataError(f"no image in {len(shards)} shards, the first {shards[0]!r}: {cause}; check image_keys")
        if require_captions and not (self._places[usable, 2] >= 0).any():
            raise DataError(
                f"no image in {len(shards)} shards, the first {shards[0]!r}, has a caption, and this run needs "
                f"captions: put them into a .{config.caption_key} member beside each, or set caption_key"
            )
        if chosen is not None:
            chosen_numbers = items_of_split(np.concatenate(scores), config.val_fraction, chosen)
            self._numbers, self._places = self._numbers[chosen_numbers], self._places[chosen_numbers]
        self.unused = unused_of(passed)
        """What is in the shards and part of no sample."""
        self._files = _OpenFiles()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        name = self._name(index)
        return self._reader.sample(name, partial(self._content, index, 0), partial(self._content, index, 2))

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions that training may show, without reading the image; a blank one counts as missing."""
        return self._reader.captions(self._name(index), partial(self._content, index, 2))

    def _name(self, index: int) -> str:
        """Returns the name of a sample. Raises UnusableSample where it is refused."""
        shard, number = (int(value) for value in self._numbers[index])
        key = self._keys[shard][number].decode("utf-8", "surrogateescape")
        name = f"{self._names[shard]}/{key}" if key else loss(self._names[shard], number)[0]
        if cause := self._refused.get((shard, number)):
            raise UnusableSample(name, cause)
        return name

    def _content(self, index: int, column: int) -> bytes | None:
        shard = int(self._numbers[index, 0])
        offset, size = (int(value) for value in self._places[index, column : column + 2])
        return None if size < 0 else self._files.read(self._paths[shard], offset, size)


class _Keys:
    """Many keys in two objects: a list of them, or a table as wide as the longest, takes far more than their bytes."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
        self._bytes = b"".join(keys)

    def __getitem__(self, number: int) -> bytes:
        return self._bytes[self._ends[number - 1] if number else 0 : self._ends[number]]


class _Descriptor:
    """An open file that is closed when nobody reads it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles:
    """Files that are read by offset: `pread` moves no position, so threads and forked processes may share them."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises UnusableSample where they are not there."""
        if size > LARGEST_MEMBER:
            raise UnusableSample(short_name(path), f"a member of {size:,} bytes is refused")
        try:
            descriptor = self._descriptor(path)  # held until the end of this call: another may drop it from the list
            content = os.pread(descriptor.number, size, offset)
        except OSError as error:
            raise UnusableSample(short_name(path), f"cannot be read: {error.strerror}") from None
        if len(content) < size:
            raise UnusableSample(short_name(path), "it became shorter while it was in use")
        return content

    def _descriptor(self, path: str) -> _Descriptor:
        # No lock, which a fork could leave locked for ever: each call is one step, and a file opened twice is harmless.
        descriptor = self._open.pop(path, None) or _Descriptor(path)
        self._open[path] = descriptor
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {}  # for a worker that is not forked: it opens its own

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
