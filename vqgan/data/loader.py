"""Batches for training and evaluation.

What step s sees is a function of (data, seed, s) alone: the order is a seeded permutation of every epoch, random
crops are seeded by the sample's position in the run, and each process takes its contiguous part of the global batch.
So a resumed run, or one on another number of processes, sees the same samples in the same order. Streams, which have
no index, are read in partitions: see `vqgan.data.stream_partitions`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset

from vqgan.config.schema import Config
from vqgan.data.batch import Batch, Item
from vqgan.data.caption_sample import sampled_captions
from vqgan.data.captions import choose_caption
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.infinite_sampler import InfiniteSampler
from vqgan.data.source import DataError, Sample, Source, Split, UnusableSample
from vqgan.data.sources.mixture import Mixture
from vqgan.data.sources.open_source import SourceConfig, open_source
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.data.stream import Stream, evaluation_order
from vqgan.data.stream_partitions import MAX_UNUSABLE_IN_A_ROW, PartitionedBatches, ReadItem, joined, partitions_for
from vqgan.data.unused import Unused, unused_in
from vqgan.data.workers import worker_init_fn


class DataConfig(Config, may_change=("batch_size", "workers", "partitions", "val_limit")):
    """Where images and captions come from, and how they are batched."""

    source: SourceConfig = ShapesConfig()
    """The data set."""
    transform: TransformConfig = TransformConfig()
    """From any image to the model's square."""
    batch_size: int = Field(64, gt=0)
    """Images in one step, over all processes and accumulated micro-batches."""
    workers: int = Field(0, ge=0)
    """Loader processes beside each training process; 0 loads in the training process."""
    partitions: int = Field(8, gt=0)
    """Streams only: fixed parts that are read beside each other and fill a batch in equal shares; what a step sees
    depends on it. A multiple of the processes, which take no more workers than they have partitions each. Of a batch
    that it does not divide, their greatest common divisor."""
    val_limit: int = Field(512, gt=0)
    """Validation images used in each evaluation, always the same: a random sample of all; of a stream those that come
    first."""


Load = Callable[[], Sample]
"""Reads an item. Raises UnusableSample."""


@dataclass(frozen=True)
class BatchShard:
    """Which part of a global batch this process takes: `rank` of `processes`, in `gradient_accumulation_steps` a
    step."""

    rank: int = 0
    processes: int = 1
    gradient_accumulation_steps: int = 1

    def local_size(self, batch_size: int) -> int:
        """Returns images in one of this process's micro-batches. Raises DataError when the global batch does not
        divide."""
        parts = self.processes * self.gradient_accumulation_steps
        if batch_size % parts:
            raise DataError(
                f"data.batch_size {batch_size} does not divide into {self.processes} processes x "
                f"{self.gradient_accumulation_steps} micro-batches; use a multiple of {parts}"
            )
        return batch_size // parts


class DataPipeline:
    """Both splits of a data set as batches. Raises DataError for a data set that cannot be used."""

    def __init__(self, config: DataConfig, seed: int, *, require_captions: bool = False) -> None:
        self.config = config
        self.seed = seed
        self._require_captions = require_captions
        self._read = self._item_reader()
        self._train = self._open("train")
        self._val = self._open("val")
        if not isinstance(self._train, Stream) and len(self._train) < config.batch_size:
            raise DataError(
                f"the training split holds {len(self._train)} images, fewer than one batch of "
                f"{config.batch_size}; lower data.batch_size or add images"
            )

    def describe(self) -> str:
        """Returns how much there is, for a person: `280 images to train on, 20 images held out, 8 a step`."""
        train, val, limit = self._train, self._val, self.config.val_limit
        to_train = "a stream" if isinstance(train, Stream) else f"{len(train):,} images"
        if isinstance(val, Stream):
            spread = hasattr(val, "spread") and getattr(val, "parts", 2) > 1
            turns = ", of up to eight of its files in turn" if spread else ""
            val_text = (
                f"a stream held out, of which evaluations use the first {limit:,} images{turns}: no random sample"
            )
        elif len(val) > limit:
            val_text = f"{len(val):,} images held out, of which evaluations use {limit:,}, a fixed random sample"
        else:
            val_text = f"{len(val):,} images held out"
        return f"{to_train} to train on, {val_text}, {self.config.batch_size} a step"

    def describe_passes(self, steps: int) -> str | None:
        """Returns how often a run of `steps` sees each training image: `1,200 steps = 24 passes over 3,226 images`.

        None for streams, whose length is unknown, and mixtures, whose sources are passed at rates of their own.
        """
        if isinstance(self._train, Stream | Mixture):
            return None
        passes = steps * self.config.batch_size / len(self._train)
        shown = f"{passes:,.0f}" if passes >= 10 else f"{passes:.2g}"
        return f"{steps:,} steps = {shown} passes over {len(self._train):,} images"

    def unused(self) -> tuple[Unused, ...]:
        """Returns what lay in the data set's location and is not used, as far as it is known by now."""
        return unused_in(self._train, self._val)

    def training_batches(self, first_step: int, steps: int, share: BatchShard) -> Iterator[list[Batch]]:
        """Yields the micro-batches of steps `first_step` ... `steps` - 1 for one process."""
        local = share.local_size(self.config.batch_size)
        if first_step >= steps:
            return
        # The loader samples a seed for its workers: not from the global generator, whose state is in the checkpoints.
        settings: dict[str, Any] = {
            "generator": torch.Generator(),
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": worker_init_fn,
        }
        readers = 1
        if isinstance(self._train, Stream):
            partitions = partitions_for(
                self.config.partitions, self.config.batch_size, share.processes, share.gradient_accumulation_steps
            )
            mine = range(share.rank * partitions // share.processes, (share.rank + 1) * partitions // share.processes)
            per_step = self.config.batch_size // partitions
            start, per_micro_batch = first_step * per_step, per_step // share.gradient_accumulation_steps
            stream = PartitionedBatches(self._train, self._read, self.seed, mine, partitions, per_micro_batch, start)
            workers = min(self.config.workers, len(mine))
            readers = max(1, workers)
            settings["pin_memory"] &= readers == 1  # else the whole is pinned below, not the parts
            loader = DataLoader[Any](stream, batch_size=None, num_workers=workers, **settings)
        else:
            loader = DataLoader[Any](
                _Positions(self._train, self._read, self.seed),
                batch_sampler=_PositionSampler(first_step, steps, self.config.batch_size, local, share),
                num_workers=self.config.workers,
                collate_fn=_collate,
                **settings,
            )
        # Nothing else holds the loader's iterator: however this loop is left, the workers end with it.
        parts: list[Batch] = []
        for part in islice(loader, (steps - first_step) * share.gradient_accumulation_steps * readers):
            if isinstance(part, DataError):
                raise part
            parts.append(part)
            if len(parts) == share.gradient_accumulation_steps * readers:
                whole = [joined(parts[at : at + readers]) for at in range(0, len(parts), readers)]
                yield [batch.pin_memory() for batch in whole] if readers > 1 and torch.cuda.is_available() else whole
                parts = []

    def val_batches(
        self, rank: int = 0, processes: int = 1, batch_size: int | None = None, *, even: bool = False
    ) -> Iterator[Batch]:
        """Yields a fixed sample of `val_limit` validation images in fixed order, every `processes`-th batch of it.

        Only the batches of this process are decoded. The sample is random, as validation items come in a random order;
        of a stream it is what comes first (`evaluation_order`). The place of an unusable item is taken by another, as
        far as there are others and the data set has an index.

        `even`: as many batches on every process, for forward passes in which all take part. One that has none when
        others have gets a single image, `repeated`.
        """
        places, size = iter(self._places()), batch_size or self.config.batch_size
        skipped: list[UnusableSample] = []
        ready: Batch | None = None  # one behind: items skipped after the last batch are reported with it
        count = 0
        while own := list(islice(places, size)):
            count += 1
            if (count - 1) % processes != rank:
                continue
            items = [item for place in own if (item := self._usable_of(place, skipped)) is not None]
            if not items and not even:
                continue
            if ready is not None:
                yield ready
            ready = replace(Batch.of(items), skipped=tuple(skipped)) if items else self._stand_in(skipped)
            skipped.clear()
        if even and 0 < count % processes <= rank:
            if ready is not None:
                yield ready
            ready = self._stand_in(skipped)
        if ready is not None:
            yield replace(ready, skipped=(*ready.skipped, *skipped))

    def preview_batch(self, count: int, split: Split = "val") -> Batch:
        """Returns the first `count` usable images of a split: of validation ones a sample, as in evaluations.

        Raises DataError when there is none.
        """
        source, skipped = self._val if split == "val" else self._train, list[UnusableSample]()
        loads = (item.load for item in evaluation_order(source)) if isinstance(source, Stream) else _loads(source)
        usable = (item for load in loads if (item := self._usable_of([load], skipped)) is not None)
        items = list(islice(usable, count))
        if not items:
            raise DataError(f"no usable image in the {split} split; skipped {len(skipped)}{_first_of(skipped)}")
        return replace(Batch.of(items), skipped=tuple(skipped))

    def captions(self, count: int) -> Iterator[str]:
        """Captions of `count` training samples from all over the data set, for training a text tokenizer."""
        for found in sampled_captions(self._train, count):
            yield from found

    def _open(self, split: Split) -> Source | Stream:
        transform = self.config.transform
        return open_source(
            self.config.source,
            split,
            transform.image_size,
            require_captions=self._require_captions,
            min_side=transform.min_decode_side if split == "train" else None,  # evaluation decodes whole images
        )

    def _item_reader(self) -> ReadItem:
        return _ReadImage(self.config.transform)

    def _places(self) -> Iterator[Iterable[Load]]:
        """Of each place in the validation sample what may stand there, the further ones for unusable items before them.

        Which those are depends on the place alone, so that no process needs to know what another could not use.
        """
        source, limit = self._val, self.config.val_limit
        if isinstance(source, Stream):
            return ([item.load] for item in islice(evaluation_order(source), limit))
        read, count = source.__getitem__, len(source)
        return ((partial(read, index) for index in range(place, count, limit)) for place in range(min(limit, count)))

    def _usable_of(self, place: Iterable[Load], skipped: list[UnusableSample]) -> Item | None:
        """Returns the first usable item of a place, not augmented; `skipped` receives the others."""
        for load in place:
            try:
                sample = load()
            except UnusableSample as unusable:
                skipped.append(unusable.report())
                continue
            return self._read(sample, None, ())
        return None

    def _stand_in(self, skipped: Sequence[UnusableSample]) -> Batch:
        return replace(self.preview_batch(1), repeated=True, skipped=tuple(skipped))


def _loads(source: Source) -> Iterator[Load]:
    return (partial(source.__getitem__, index) for index in range(len(source)))


def _first_of(skipped: Sequence[UnusableSample]) -> str:
    return f", the first: {skipped[0]}" if skipped else ""


def _collate(items: Sequence[Item | DataError]) -> Batch | DataError:
    # Raised in a worker, an error would arrive wrapped in that process's traceback: it travels as a value instead.
    return next((item for item in items if isinstance(item, DataError)), None) or Batch.of(items)  # type: ignore[arg-type]


class _ReadImage:
    """The transformed image of a sample with its caption."""

    def __init__(self, config: TransformConfig) -> None:
        self._transform = ImageTransform(config)

    def __call__(self, sample: Sample, rng: np.random.Generator | None, skipped: tuple[UnusableSample, ...]) -> Item:
        return Item(self._transform(sample.image, rng), choose_caption(sample, rng), sample.name, skipped)


class _Positions(Dataset[Item | DataError]):
    """Sample number `position` of an endless run; a mixture's sources each go through epochs of their own."""

    def __init__(self, source: Source, read: ReadItem, seed: int) -> None:
        self._turns = source.turns if isinstance(source, Mixture) else None
        self._sources = source.sources if isinstance(source, Mixture) else [source]
        self._orders = [
            InfiniteSampler(len(part), (seed, number) if self._turns else (seed,))
            for number, part in enumerate(self._sources)
        ]
        self._read = read
        self._seed = seed

    def __getitem__(self, position: int) -> Item | DataError:
        number, turn = self._turns[position] if self._turns else (0, position)
        rng = np.random.default_rng((self._seed, position))
        skipped: list[UnusableSample] = []
        # An unusable item is replaced by the next in its source's epoch, so that batches keep their size.
        for index in islice(self._orders[number].from_position(turn), MAX_UNUSABLE_IN_A_ROW):
            try:
                sample = self._sources[number][index]
            except UnusableSample as unusable:
                skipped.append(unusable.report())
                continue
            return self._read(sample, rng, tuple(skipped))
        return DataError(f"{len(skipped)} unusable items in a row{_first_of(skipped)}; the last: {skipped[-1]}")


class _PositionSampler:
    """Positions of this process's micro-batches, one list each."""

    def __init__(self, first_step: int, steps: int, batch_size: int, local_size: int, share: BatchShard) -> None:
        self._steps = range(first_step, steps)
        self._batch_size = batch_size
        self._local = local_size
        self._share = share

    def __iter__(self) -> Iterator[list[int]]:
        micro_size = self._local * self._share.processes
        for step in self._steps:
            for micro in range(self._share.gradient_accumulation_steps):
                start = step * self._batch_size + micro * micro_size + self._share.rank * self._local
                yield list(range(start, start + self._local))

    def __len__(self) -> int:
        return len(self._steps) * self._share.gradient_accumulation_steps
