"""A look at every item: sizes, proportions, what is broken, the same with workers and with a limit."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from parti.data_check.scan import PROPORTIONS, ImageStats, expected_items, image_stats, scan, size_stats
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.source import Sample, UnusableSample
from vqgan.data.sources.mixture import Mixture
from vqgan.data.stream import EncodedSample


class Items:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            raise UnusableSample("3", "truncated")
        return Sample(Image.new("RGB", (4, 4), (index, 0, 0)), f"number {index}", str(index))


class Row:
    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:
        raise NotImplementedError

    def iterate(self) -> Iterator[EncodedSample]:
        items = Items(6)
        return (EncodedSample(str(i), lambda i=i: items[i]) for i in range(6))  # type: ignore[misc]


def names(stats: Iterator[ImageStats | UnusableSample]) -> list[str]:
    return [f"{found.name}!" if isinstance(found, UnusableSample) else found.name for found in stats]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_is_looked_at_once(workers: int) -> None:
    stats = list(scan(Items(6), workers=workers))
    assert names(iter(stats)) == ["0", "1", "2", "3!", "4", "5"]
    first = stats[0]
    assert isinstance(first, ImageStats)
    assert (first.size, first.captions) == ((4, 4), ("number 0",))
    assert names(scan(Row())) == ["0", "1", "2", "3!", "4", "5"]


def test_a_limit_is_spread_evenly_where_there_is_an_index() -> None:
    assert names(scan(Items(20), limit=4)) == ["0", "5", "10", "15"]
    assert names(scan(Row(), limit=2)) == ["0", "1"]
    mixture = Mixture([Items(100), Items(2)], "ab", [1, 1])
    assert sorted(names(scan(mixture, limit=4))) == ["a: 0", "a: 1", "b: 0", "b: 1"], "which begins mixed"
    assert [expected_items(Items(20), limit) for limit in (0, 4, 30)] == [20, 4, 20]
    assert [expected_items(Row(), limit) for limit in (0, 4)] == [None, 4]


def looks_of(*sizes: tuple[int, int]) -> list[ImageStats]:
    return [image_stats(Sample(Image.new("RGB", size), None, "x")) for size in sizes]


def test_size_metrics() -> None:
    stats = looks_of((10, 30), (40, 80), (80, 64), (64, 64), (80, 40), (200, 50))
    metrics = size_stats(stats, TransformConfig(image_size=50))
    assert (metrics.smallest, metrics.median_shorter_side, metrics.largest) == ((10, 30), 45, (200, 50))
    assert metrics.enlarged == 3
    assert metrics.proportions == dict(zip(PROPORTIONS, [1, 1, 2, 1, 1], strict=True))
    assert metrics.shown_share == pytest.approx(np.mean([1 / 3, 1 / 2, 4 / 5, 1, 1 / 2, 1 / 4]))


@pytest.mark.parametrize(("crop", "enlarged", "shown"), [("center", 1, 0.5), ("pad", 0, 1.0), ("stretch", 1, 1.0)])
def test_what_is_enlarged_and_shown_depends_on_the_crop(crop: str, enlarged: int, shown: float) -> None:
    transform = TransformConfig.model_validate({"image_size": 50, "crop": crop})
    metrics = size_stats(looks_of((80, 40)), transform)
    assert (metrics.enlarged, metrics.shown_share) == (enlarged, shown)


def test_another_pixel_or_another_shape_is_another_fingerprint() -> None:
    wide, tall = looks_of((6, 4), (4, 6))
    assert wide.fingerprint != tall.fingerprint
    dot = Image.new("RGB", (6, 4))
    dot.putpixel((5, 3), (0, 0, 1))
    assert image_stats(Sample(dot, None, "x")).fingerprint != wide.fingerprint
