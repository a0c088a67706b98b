"""Scans every item of a data set: sizes and aspect ratios of the images, broken items, captions.

Images are read as for training, except for the transform. A fingerprint and a thumbnail of each, 0.5 kB, are stored for
`duplicates`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqgan.data.captions import all_captions
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.iterate import iterate
from vqgan.data.source import Sample, Source, UnusableSample
from vqgan.data.sources.mixture import Mixture
from vqgan.data.stream import Stream

THUMBNAIL = 12
"""Side of a thumbnail in pixels."""
PROPORTIONS = ("very tall (under 1:2)", "tall", "nearly square", "wide", "very wide (over 2:1)")
"""Classes of aspect ratio; nearly square is from 4:5 to 5:4."""
_BOUNDS = (1 / 2, 4 / 5, np.nextafter(5 / 4, 2), np.nextafter(2, 3))


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one usable item: (width, height), a hash of size and pixels, a thumbnail, its captions."""

    name: str
    size: tuple[int, int]
    fingerprint: bytes
    thumbnail: UInt8[np.ndarray, "S S 3"]
    captions: tuple[str, ...]


def image_stats(sample: Sample) -> ImageStats:
    """Computes the statistics of a sample."""
    image = sample.image
    fingerprint = hashlib.blake2b(f"{image.width}x{image.height} ".encode() + image.tobytes(), digest_size=16).digest()
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))
    return ImageStats(sample.name, image.size, fingerprint, thumbnail, all_captions(sample))


def expected_items(source: Source | Stream, limit: int) -> int | None:
    """Returns the number of items that `scan` yields; None if unknown."""
    if isinstance(source, Stream):
        return limit or None
    return min(len(source), limit or len(source))


def scan(source: Source | Stream, limit: int = 0, workers: int = 0) -> Iterator[ImageStats | UnusableSample]:
    """Yields the statistics of every item in the source's own order, or of `limit` items, evenly spread if it has an
    index.

    Of a mixture it takes the first ones, which are mixed.
    """
    if isinstance(source, Stream):
        return iterate(source, image_stats, limit=limit or None)
    count = expected_items(source, limit) or 0
    stretch = count if isinstance(source, Mixture) else len(source)
    return iterate(source, image_stats, workers, [place * stretch // count for place in range(count)])


@dataclass(frozen=True)
class SizeStats:
    """Image statistics of a split: shorter sides in pixels, number of enlarged images, aspect ratios."""

    smallest: tuple[int, int]
    median_shorter_side: int
    largest: tuple[int, int]
    enlarged: int
    """Number of images smaller than the model's square."""
    proportions: dict[str, int]
    """Number of images by class of aspect ratio."""
    shown_share: float
    """Mean fraction of an image's area inside the evaluation crop."""


def size_stats(stats: Sequence[ImageStats], transform: TransformConfig) -> SizeStats:
    """Returns the statistics of one image or more."""
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
