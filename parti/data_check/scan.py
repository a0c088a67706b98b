"""What a look at every item of a data set tells: sizes and proportions of the images, broken items, captions.

Images are read just as for training, but for the transform. Of each one a fingerprint and a thumbnail are kept, 0.5
kB, from which `duplicates` are found.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vqgan.data.captions import all_captions
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.source import Sample, Source, UnusableSample
from vqgan.data.sources.mixture import Mixture
from vqgan.data.stream import Stream

THUMBNAIL = 12
"""Side of a thumbnail in pixels."""
PROPORTIONS = ("very tall (under 1:2)", "tall", "nearly square", "wide", "very wide (over 2:1)")
"""Kinds of width over height; nearly square is from 4:5 to 5:4."""
_BOUNDS = (1 / 2, 4 / 5, np.nextafter(5 / 4, 2), np.nextafter(2, 3))


@dataclass(frozen=True)
class ImageStats:
    """What is kept of one usable item: (width, height), a hash of size and pixels, a thumbnail, its captions."""

    name: str
    size: tuple[int, int]
    fingerprint: bytes
    thumbnail: UInt8[np.ndarray, "S S 3"]
    captions: tuple[str, ...]


def image_stats(sample: Sample) -> ImageStats:
    """All that is kept of a sample."""
    image = sample.image
    fingerprint = hashlib.blake2b(f"{image.width}x{image.height} ".encode() + image.tobytes(), digest_size=16).digest()
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))
    return ImageStats(sample.name, image.size, fingerprint, thumbnail, all_captions(sample))


def expected_items(source: Source | Stream, limit: int) -> int | None:
    """How many items `scan` gives; None where nobody knows."""
    if isinstance(source, Stream):
        return limit or None
    return min(len(source), limit or len(source))


def scan(source: Source | Stream, limit: int = 0, workers: int = 0) -> Iterator[ImageStats | UnusableSample]:
    """A look at every item in the source's own order; at `limit` of them, evenly spread where there is an index.

    Of a mixture at the first, which are mixed.
    """
    if isinstance(source, Stream):
        for item in islice(source.iterate(), limit or None):
            try:
                yield image_stats(item.load())
            except UnusableSample as unusable:
                yield unusable.report()
        return
    count = expected_items(source, limit) or 0
    stretch = count if isinstance(source, Mixture) else len(source)
    numbers = [place * stretch // count for place in range(count)]
    # A loader draws a seed for its workers: from a generator of its own, to leave the global one alone.
    loader = DataLoader[Any](
        _ImageStatsDataset(source, numbers), batch_size=None, num_workers=workers, generator=torch.Generator()
    )
    yield from loader


class _ImageStatsDataset(Dataset[ImageStats | UnusableSample]):
    """What is unusable comes as a value: an exception would end the loader."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self._source = source
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> ImageStats | UnusableSample:
        try:
            return image_stats(self._source[self._numbers[index]])
        except UnusableSample as unusable:
            return unusable.report()


@dataclass(frozen=True)
class SizeStats:
    """Of the images of a split: shorter sides in pixels, how many are enlarged, and what their proportions are."""

    smallest: tuple[int, int]
    median_shorter_side: int
    largest: tuple[int, int]
    enlarged: int
    """Images with fewer pixels than the model's square asks for."""
    proportions: dict[str, int]
    """Number of images by kind of proportion."""
    shown_share: float
    """Share of an image's area that the crop of evaluation shows, on average."""


def size_stats(stats: Sequence[ImageStats], transform: TransformConfig) -> SizeStats:
    """Metrics of one image or more."""
    sizes = np.array([look.size for look in stats])
    shorter, longer = sizes.min(1), sizes.max(1)
    by_area = np.argsort(sizes.prod(1), kind="stable")
    wide = sizes[:, 0] / sizes[:, 1]
    # pad shows the longer side; stretch and the squares need the shorter one.
    side = longer if transform.crop == "pad" else shorter
    whole = transform.crop in ("pad", "stretch")
    kinds = np.bincount(np.searchsorted(_BOUNDS, wide, side="right"), minlength=len(PROPORTIONS))
    return SizeStats(
        smallest=_size(sizes[by_area[0]]),
        median_shorter_side=int(np.median(shorter)),
        largest=_size(sizes[by_area[-1]]),
        enlarged=int((side < transform.image_size).sum()),
        proportions=dict(zip(PROPORTIONS, kinds.tolist(), strict=True)),
        shown_share=1.0 if whole else float((shorter / longer).mean()),
    )


def _size(row: Any) -> tuple[int, int]:
    return int(row[0]), int(row[1])
