"""Reads the data set to encode, shard by shard, each shard in batches that do not cross its borders.

A shard is a range of positions of a split in the data's own order. Its batches depend on it only, so its codes do not
depend on the process that encodes it or on earlier shards.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from parti.code_cache.settings import ImagesConfig
from vqgan.data.captions import all_captions
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.source import DataError, Sample, Source, Split, UnusableSample
from vqgan.data.sources.mixture import Mixture, MixtureConfig
from vqgan.data.stream import Stream


class ShardedSource(DataPipeline):
    """Both splits of a data set, opened as a stage-2 run opens them."""

    def __init__(self, config: ImagesConfig) -> None:
        # Nothing is batched here: no data set is too small.
        pipeline = DataConfig(source=config.source, transform=config.transform, batch_size=1)
        super().__init__(pipeline, seed=0, require_captions=True)

        if isinstance(config.source, MixtureConfig) and isinstance(self._train, Stream):
            raise DataError(
                "a mixture with a stream in it has no place to keep the weights in a code cache; encode without "
                "streaming, or train from the images"
            )

    def split(self, split: Split) -> Source | Stream:
        """Returns one split; the data sets of a mixture follow each other."""
        source = self._train if split == "train" else self._val
        return ConcatDataset(source.sources) if isinstance(source, Mixture) else source  # type: ignore[arg-type]

    def parts(self, split: Split) -> tuple[int, ...]:
        """Returns the number of items of each data set of a mixture."""
        source = self._train if split == "train" else self._val
        return tuple(map(len, source.sources)) if isinstance(source, Mixture) else ()

    def positions(self, split: Split) -> int | None:
        """Returns the number of items of a split, usable or not; None for a stream."""
        source = self.split(split)
        return None if isinstance(source, Stream) else len(source)


@dataclass(frozen=True)
class Views:
    """The squares of one image, one for each crop."""

    position: int
    name: str
    captions: tuple[str, ...]
    squares: Float[Tensor, "K 3 H W"]


@dataclass(frozen=True)
class Unusable:
    """An unusable item, and why."""

    position: int
    cause: UnusableSample


@dataclass(frozen=True)
class Part:
    """Consecutive items of a shard; `last` marks its end."""

    shard: int
    items: list[Views | Unusable]
    last: bool


class CropImage:
    """Squares of a sample: `views` random ones, by (seed, position, number); a single one is as in evaluation."""

    def __init__(self, config: TransformConfig, views: int, seed: int) -> None:
        self._transform = ImageTransform(config)
        self._crops = views
        self._seed = seed

    def __call__(self, sample: Sample, position: int) -> Views:
        squares = [self._transform(sample.image, rng) for rng in self._draws(position)]
        return Views(position, sample.name, all_captions(sample), torch.stack(squares))

    def _draws(self, position: int) -> list[np.random.Generator | None]:
        if self._crops == 1:
            return [None]
        return [np.random.default_rng((self._seed, position, number)) for number in range(self._crops)]


class ShardReader:
    """Reads one process's missing shards, one after the other."""

    def __init__(self, source: Source | Stream, crop: CropImage, part_size: int, shard_size: int) -> None:
        self._source = source
        self._crop = crop
        self._part_size = part_size
        self._shard_size = shard_size
        self.seen = 0 if isinstance(source, Stream) else len(source)
        """Positions of the split, of a stream as far as it has been read."""

    def read(self, there: Set[int], rank: int, processes: int, workers: int) -> Iterator[Part]:
        """Yields the parts for process `rank` of `processes`, without the shards that are `there`."""
        if isinstance(self._source, Stream):
            return self._stream_parts(self._source, there, rank, processes)
        ranges = self._ranges(self._share(there, rank, processes))
        loader = DataLoader[Any](
            _Positions(self._source, self._crop),
            batch_sampler=ranges,  # type: ignore[arg-type]  # a range is as good as a list of its numbers
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),
        )
        parts = zip(ranges, loader, strict=True)
        return (Part(at.start // self._shard_size, items, self._ends_shard(at.stop)) for at, items in parts)

    def expected(self, there: Set[int], rank: int, processes: int) -> int | None:
        """Returns the number of positions that `read` covers; None if it is unknown before reading."""
        if isinstance(self._source, Stream):
            return None
        return sum(map(len, self._ranges(self._share(there, rank, processes))))

    def _share(self, there: Set[int], rank: int, processes: int) -> list[int]:
        return [number for number in range(-(-self.seen // self._shard_size)) if number not in there][rank::processes]

    def _ranges(self, shards: list[int]) -> list[range]:
        end = self.seen
        return [
            range(start, min(start + self._part_size, (shard + 1) * self._shard_size, end))
            for shard in shards
            for start in range(shard * self._shard_size, min((shard + 1) * self._shard_size, end), self._part_size)
        ]

    def _ends_shard(self, stop: int) -> bool:
        return stop == self.seen or stop % self._shard_size == 0

    def _stream_parts(self, stream: Stream, there: Set[int], rank: int, processes: int) -> Iterator[Part]:
        """Reads a stream: every process skips through all of it and decodes only its own shards."""
        items: list[Views | Unusable] = []
        shard, mine = 0, False
        for position, undecoded in enumerate(stream.iterate()):
            shard, place = divmod(position, self._shard_size)
            mine = shard % processes == rank and shard not in there
            self.seen = position + 1
            if not mine:
                continue
            items.append(_cropped(undecoded.load, self._crop, position))
            last = place == self._shard_size - 1
            if len(items) == self._part_size or last:
                yield Part(shard, items, last)
                items = []
        if mine and self.seen % self._shard_size:
            yield Part(shard, items, True)


class _Positions(Dataset[Views | Unusable]):
    """Dataset of the squares at any position, for loader workers."""

    def __init__(self, source: Source, crop: CropImage) -> None:
        self._source = source
        self._crop = crop

    def __getitem__(self, position: int) -> Views | Unusable:
        return _cropped(partial(self._source.__getitem__, position), self._crop, position)


def _cropped(load: Callable[[], Sample], crop: CropImage, position: int) -> Views | Unusable:
    try:
        return crop(load(), position)
    except UnusableSample as cause:
        return Unusable(position, cause)
