"""Partitions: who reads which shards, the shuffle, and resuming by arithmetic."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from vqgan.data.source import DataError
from vqgan.data.stream import (
    EncodedSample,
    PartitionReader,
    block_shuffle,
    broken_sample,
    infinite,
    shards_of_partition,
)


@pytest.mark.parametrize("partitions", [1, 2, 3, 8])
@pytest.mark.parametrize("shards", [1, 2, 5, 8, 9, 12, 15, 16, 31])
def test_the_partitions_read_every_item_of_every_shard_once(shards: int, partitions: int) -> None:
    sizes = [24 + 7 * shard % 5 for shard in range(shards)]
    parts = [shards_of_partition(shards, partition, partitions) for partition in range(partitions)]
    seen = Counter(
        (shard, item) for part in parts for shard, first, step in part for item in range(first, sizes[shard], step)
    )
    assert seen == Counter((shard, item) for shard in range(shards) for item in range(sizes[shard]))
    if shards < partitions:
        assert all(len(part) == shards for part in parts)
    else:
        whole_rounds = shards // partitions
        assert all(whole_rounds <= len(part) <= whole_rounds + 1 for part in parts)
        loads = [sum(1 / step for _, _, step in part) for part in parts]
        assert max(loads) <= whole_rounds + 1
        assert sum(loads) == pytest.approx(shards)


def test_the_shuffle_holds_no_more_than_its_size_and_can_begin_at_any_block() -> None:
    taken = 0

    def source(first: int) -> Iterator[int]:
        nonlocal taken
        for number in range(first, 50):
            taken += 1
            yield number

    whole = []
    for given, number in enumerate(block_shuffle(source(0), 8, (1, 2))):
        assert taken - given <= 9, "held"
        whole.append(number)
    blocks = [whole[start : start + 8] for start in range(0, 50, 8)]
    assert [sorted(block) for block in blocks] == [list(range(s, min(50, s + 8))) for s in range(0, 50, 8)]
    assert all(block != sorted(block) for block in blocks[:6])
    assert list(block_shuffle(source(24), 8, (1, 2), first=3)) == whole[24:]
    assert list(block_shuffle(source(0), 8, (1, 3))) != whole


class Numbers(PartitionReader):
    """Numbers below `count`, of which up to `free` can be left out; `read` counts the others."""

    def __init__(self, count: int, free: int) -> None:
        self.count, self.free = count, free
        self.read = 0

    def epoch(self, order: np.random.Generator, skip: int) -> tuple[int, Iterator[EncodedSample]]:
        numbers, passed = order.permutation(self.count), min(skip, self.free)
        return passed, map(self.item, numbers[passed:])

    def item(self, number: int) -> EncodedSample:
        self.read += 1
        return broken_sample(str(number), "not read in this test")


def names(part: Numbers, start: int, count: int, partition: int = 0, seed: int = 0) -> list[str]:
    return [item.name for item in islice(infinite(part, partition, seed, start, buffer=4), count)]


@pytest.mark.parametrize("free", [0, 3, 6, 11])
def test_a_partition_goes_on_from_any_item_and_reads_little_for_it_where_it_can_leave_out(free: int) -> None:
    whole = names(Numbers(11, free), 0, 80)
    for epoch in range(7):
        assert sorted(map(int, whole[11 * epoch : 11 * epoch + 11])) == list(range(11))
    assert len({tuple(whole[11 * epoch : 11 * epoch + 11]) for epoch in range(7)}) == 7
    for start in range(60):
        part = Numbers(11, free)
        assert names(part, start, 20) == whole[start : start + 20]
        assert part.read <= 20 + 2 * 4 + 2 * (11 - free)
    assert names(Numbers(11, free), 0, 80, partition=1) != whole
    assert names(Numbers(11, free), 0, 80, seed=1) != whole


def test_an_empty_partition_is_an_error_and_no_endless_loop() -> None:
    for start in (0, 5):
        with pytest.raises(
            DataError, match=r"partition 0 of the stream has no items; lower data\.partitions or add data"
        ):
            names(Numbers(0, 0), start, 1)
