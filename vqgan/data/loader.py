"""Batches for training and evaluation.

What step s sees is a function of (data, seed, s) alone: the order is a seeded permutation of every epoch, random
crops are seeded by the sample's position in the run, and each process takes its contiguous part of the global batch.
So a resumed run, or one on another number of processes, sees the same samples in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vqgan.config import Config
from vqgan.data.batch import Batch, Item
from vqgan.data.hub import HubStream
from vqgan.data.shapes import ShapesConfig
from vqgan.data.source import DataError, Sample, Source, Split, UnusableSample
from vqgan.data.sources import SourceConfig, open_source
from vqgan.data.transforms import ImageTransform, TransformConfig

_MAX_UNUSABLE_IN_A_ROW = 1000


class DataConfig(Config):
    """Where pictures and captions come from, and how they are batched."""

    source: SourceConfig = ShapesConfig()
    """The data set."""
    transform: TransformConfig = TransformConfig()
    """From any picture to the model's square."""
    batch_size: int = Field(64, gt=0)
    """Pictures in one step, over all processes and accumulated micro-batches."""
    workers: int = Field(0, ge=0)
    """Loader processes beside each training process; 0 loads in the training process."""
    heldout_limit: int = Field(512, gt=0)
    """Held-out pictures used in each evaluation."""


@dataclass(frozen=True)
class Share:
    """Which part of a global batch this process takes: `rank` of `processes`, in `micro_batches` a step."""

    rank: int = 0
    processes: int = 1
    micro_batches: int = 1

    def local_size(self, batch_size: int) -> int:
        """Pictures in one of this process's micro-batches. Raises DataError when the global batch does not divide."""
        parts = self.processes * self.micro_batches
        if batch_size % parts:
            raise DataError(
                f"data.batch_size {batch_size} does not divide into {self.processes} processes x "
                f"{self.micro_batches} micro-batches; use a multiple of {parts}"
            )
        return batch_size // parts


class DataPipeline:
    """Both splits of a data set as batches. Raises DataError for a data set that cannot be used."""

    def __init__(self, config: DataConfig, seed: int, *, require_captions: bool = False) -> None:
        self.config = config
        self.seed = seed
        self._require_captions = require_captions
        self._transform = ImageTransform(config.transform)
        self._train = self._open("train")
        self._heldout = self._open("heldout")
        if not isinstance(self._train, HubStream) and len(self._train) < config.batch_size:
            raise DataError(
                f"the training split holds {len(self._train)} pictures, fewer than one batch of "
                f"{config.batch_size}; lower data.batch_size or add pictures"
            )

    def training_batches(self, first_step: int, steps: int, share: Share) -> Iterator[list[Batch]]:
        """The micro-batches of steps `first_step` ... `steps` - 1 for one process."""
        local = share.local_size(self.config.batch_size)
        if first_step >= steps:
            return
        # A loader draws a seed for its workers: not from the global generator, whose state is part of a checkpoint.
        settings: dict[str, Any] = {"generator": torch.Generator(), "pin_memory": torch.cuda.is_available()}
        if isinstance(self._train, HubStream):
            stream = _StreamBatches(self._train, self._transform, self.seed, first_step, self.config.batch_size, share)
            # More than one worker would each read the whole stream.
            loader = DataLoader[Any](stream, batch_size=None, num_workers=min(1, self.config.workers), **settings)
        else:
            loader = DataLoader[Any](
                _Positions(self._train, self._transform, self.seed),
                batch_sampler=_PositionSampler(first_step, steps, self.config.batch_size, local, share),
                num_workers=self.config.workers,
                collate_fn=_collate,
                **settings,
            )
        parts: list[Batch] = []
        # Nothing else holds the loader's iterator: however this loop is left, the workers end with it.
        for batch in islice(loader, (steps - first_step) * share.micro_batches):
            if isinstance(batch, DataError):
                raise batch
            parts.append(batch)
            if len(parts) == share.micro_batches:
                yield parts
                parts = []

    def heldout_batches(self, rank: int = 0, processes: int = 1, batch_size: int | None = None) -> Iterator[Batch]:
        """The first `heldout_limit` usable held-out pictures in fixed order, every `processes`-th batch."""
        size = batch_size or self.config.batch_size
        items = islice(self._usable("heldout", []), self.config.heldout_limit)
        number = 0
        while chunk := list(islice(items, size)):
            if number % processes == rank:
                yield Batch.of(chunk)
            number += 1

    def preview_batch(self, count: int, split: Split = "heldout") -> Batch:
        """The first `count` usable pictures of a split. Raises DataError when there is none."""
        skipped: list[UnusableSample] = []
        items = list(islice(self._usable(split, skipped), count))
        if not items:
            raise DataError(f"no usable picture in the {split} split; skipped {len(skipped)}{_first_of(skipped)}")
        return Batch.of(items)

    def captions(self, count: int) -> Iterator[str]:
        """Captions of the first `count` training samples, for training a text tokenizer."""
        if isinstance(self._train, HubStream):
            for sample in islice(self._train.samples(0, self.seed), count):
                if isinstance(sample, Sample) and sample.caption:
                    yield sample.caption
            return
        captions = getattr(self._train, "caption", None)
        for index in range(min(count, len(self._train))):
            try:
                caption = captions(index) if captions else self._train[index].caption
            except UnusableSample:
                continue
            if caption:
                yield caption

    def _open(self, split: Split) -> Source | HubStream:
        image_size = self.config.transform.image_size
        return open_source(self.config.source, split, image_size, require_captions=self._require_captions)

    def _usable(self, split: Split, skipped: list[UnusableSample]) -> Iterator[Item]:
        """A split's usable items in its own order, not augmented; `skipped` holds those on the way to the next."""
        source = self._heldout if split == "heldout" else self._train
        for sample in _samples(source, self.seed):
            if isinstance(sample, UnusableSample):
                skipped.append(sample)
                continue
            yield Item(self._transform(sample.image, None), sample.caption, sample.name, tuple(skipped))
            skipped.clear()


def _samples(source: Source | HubStream, seed: int) -> Iterator[Sample | UnusableSample]:
    """One pass in the source's own order."""
    if isinstance(source, HubStream):
        yield from source.samples(0, seed)
        return
    for index in range(len(source)):
        try:
            yield source[index]
        except UnusableSample as unusable:
            yield unusable


def _first_of(skipped: Sequence[UnusableSample]) -> str:
    return f", the first: {skipped[0]}" if skipped else ""


def _collate(items: Sequence[Item | DataError]) -> Batch | DataError:
    # Raised in a worker, an error would arrive wrapped in that process's traceback: it travels as a value instead.
    return next((item for item in items if isinstance(item, DataError)), None) or Batch.of(items)  # type: ignore[arg-type]


class _Positions(Dataset[Item | DataError]):
    """Sample number `position` of an endless run: epoch after epoch, each in its own seeded order."""

    def __init__(self, source: Source, transform: ImageTransform, seed: int) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed
        self._epoch = -1
        self._order: Sequence[int] | np.ndarray[Any, Any] = ()

    def __getitem__(self, position: int) -> Item | DataError:
        epoch, slot = divmod(position, len(self._source))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(len(self._source))
        rng = np.random.default_rng((self._seed, position))
        skipped: list[UnusableSample] = []
        # An unusable item is replaced by the next in this epoch's order, so that batches keep their size.
        for offset in range(min(len(self._source), _MAX_UNUSABLE_IN_A_ROW)):
            try:
                sample = self._source[int(self._order[(slot + offset) % len(self._source)])]
            except UnusableSample as unusable:
                skipped.append(unusable)
                continue
            return Item(self._transform(sample.image, rng), sample.caption, sample.name, tuple(skipped))
        return DataError(f"{len(skipped)} unusable items in a row{_first_of(skipped)}; the last: {skipped[-1]}")


class _PositionSampler:
    """Positions of this process's micro-batches, one list each."""

    def __init__(self, first_step: int, steps: int, batch_size: int, local_size: int, share: Share) -> None:
        self._steps = range(first_step, steps)
        self._batch_size = batch_size
        self._local = local_size
        self._share = share

    def __iter__(self) -> Iterator[list[int]]:
        micro_size = self._local * self._share.processes
        for step in self._steps:
            for micro in range(self._share.micro_batches):
                start = step * self._batch_size + micro * micro_size + self._share.rank * self._local
                yield list(range(start, start + self._local))

    def __len__(self) -> int:
        return len(self._steps) * self._share.micro_batches


class _StreamBatches(IterableDataset[Batch | DataError]):
    """Micro-batches from a source without an index. Resuming reads past what the run has already seen."""

    def __init__(
        self, stream: HubStream, transform: ImageTransform, seed: int, first_step: int, batch_size: int, share: Share
    ) -> None:
        self._stream = stream
        self._transform = transform
        self._seed = seed
        self._first = first_step * batch_size
        self._local = share.local_size(batch_size)
        self._share = share

    def __iter__(self) -> Iterator[Batch | DataError]:
        micro_size = self._local * self._share.processes
        items: list[Item] = []
        skipped: list[UnusableSample] = []
        for position, sample in self._numbered(skipped):
            if position < self._first or (position % micro_size) // self._local != self._share.rank:
                continue
            rng = np.random.default_rng((self._seed, position))
            items.append(Item(self._transform(sample.image, rng), sample.caption, sample.name, tuple(skipped)))
            skipped.clear()
            if len(items) == self._local:
                yield Batch.of(items)
                items = []
        yield DataError(f"a whole pass over the stream gave no usable item; skipped {len(skipped)}{_first_of(skipped)}")

    def _numbered(self, skipped: list[UnusableSample]) -> Iterator[tuple[int, Sample]]:
        """Usable samples, numbered through all epochs; the unusable ones are added to `skipped`. Ends if all are."""
        position, before, epoch = 0, -1, 0
        while position > before:
            before = position
            for sample in self._stream.samples(epoch, self._seed):
                if isinstance(sample, UnusableSample):
                    skipped.append(sample)
                else:
                    yield position, sample
                    position += 1
            epoch += 1
