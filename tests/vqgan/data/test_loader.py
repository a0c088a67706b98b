"""Batches: a function of (data, seed, step) alone, whatever the workers, processes, interruptions and broken items."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data import loader as loader_module
from vqgan.data.batch import Batch, Item
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import DataError, Sample, UnusableSample
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.data.stream import EncodedSample, PartitionReader, infinite

CROPS = TransformConfig(image_size=8, crop="random", smallest_crop=0.5, flip=True)


def sample(number: int) -> Sample:
    """An image that differs from pixel to pixel, so that a crop shows."""
    noise = torch.randint(256, (20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return Sample(Image.fromarray(noise.numpy()), f"number {number}", str(number))


class Numbers:
    """Items 0 ... count - 1, some of them broken; the validation ones are numbered from 1000."""

    def __init__(self, count: int, broken: Callable[[int], bool] = lambda _: False, first: int = 0) -> None:
        self.count, self.broken, self.first = count, broken, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        assert 0 <= index < self.count
        if self.broken(index):
            raise UnusableSample(str(self.first + index), "truncated")
        return sample(self.first + index)

    def undecoded(self, index: int) -> EncodedSample:
        return EncodedSample(str(self.first + index), lambda: self[index])


class Partition(PartitionReader):
    """Numbers l, l + L, ... of `numbers`; every epoch begins one later."""

    def __init__(self, numbers: Numbers, partition: int, partitions: int) -> None:
        self.numbers, self.mine = numbers, range(numbers.count)[partition::partitions]

    def epoch(self, order: np.random.Generator, skip: int) -> tuple[int, Iterator[EncodedSample]]:
        passed, turn = min(skip, len(self.mine)), int(order.integers(max(1, len(self.mine))))
        turned = [self.mine[(slot + turn) % len(self.mine)] for slot in range(passed, len(self.mine))]
        return passed, map(self.numbers.undecoded, turned)


class Strided:
    """The same without an index."""

    def __init__(self, count: int, broken: Callable[[int], bool] = lambda _: False, first: int = 0) -> None:
        self.numbers = Numbers(count, broken, first)

    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:
        return infinite(Partition(self.numbers, partition, partitions), partition, seed, start, buffer=3)

    def iterate(self) -> Iterator[EncodedSample]:
        return (self.numbers.undecoded(index) for index in range(self.numbers.count))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataPipeline]:
    """Build a pipeline on Numbers or a Stream."""

    def build(
        train: Any = None, val: Any = None, *, batch_size: int = 4, seed: int = 0, workers: int = 0, **settings: Any
    ) -> DataPipeline:
        sources = {"train": train or Numbers(10), "val": val or Numbers(7, first=1000)}
        monkeypatch.setattr(loader_module, "open_source", lambda _config, split, _size, **_: sources[split])
        config = DataConfig(batch_size=batch_size, workers=workers, transform=CROPS, **settings)
        return DataPipeline(config, seed)

    return build


def batches(
    pipeline: DataPipeline,
    first: int = 0,
    steps: int = 6,
    share: BatchShard = BatchShard(),  # noqa: B008
) -> list[list[Batch]]:
    return list(pipeline.training_batches(first, steps, share))


def assert_same(one: list[list[Batch]], other: list[list[Batch]]) -> None:
    assert [[batch.names for batch in step] for step in one] == [[batch.names for batch in step] for step in other]
    for step, wanted in zip(one, other, strict=True):
        for batch, expected in zip(step, wanted, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert batch.captions == expected.captions


SOURCES = [Numbers, Strided]


@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_is_a_function_of_seed_and_step(source: Any, pipeline: Callable[..., DataPipeline]) -> None:
    torch.manual_seed(1)
    one = batches(pipeline(source(10)))
    torch.manual_seed(2)
    assert_same(one, batches(pipeline(source(10))))
    other = batches(pipeline(source(10), seed=1))
    assert not torch.equal(one[0][0].images, other[0][0].images)
    assert [len(step) for step in one] == [1] * 6
    assert all(batch.images.shape == (4, 3, 8, 8) for (batch,) in one)


def test_every_epoch_shows_every_item_once_in_its_own_order(pipeline: Callable[..., DataPipeline]) -> None:
    names = [name for (batch,) in batches(pipeline(batch_size=5), steps=6) for name in batch.names]
    epochs = [names[:10], names[10:20], names[20:]]
    assert all(sorted(epoch, key=int) == [str(number) for number in range(10)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_same_item_is_cropped_anew_in_every_epoch(pipeline: Callable[..., DataPipeline]) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for (batch,) in batches(pipeline(batch_size=5), steps=4):
        for name, image in zip(batch.names, batch.images, strict=True):
            seen.setdefault(name, []).append(image)
    assert all(not torch.equal(first, second) for first, second in seen.values())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("first", [1, 4])
def test_resuming_at_a_step_gives_the_rest(source: Any, first: int, pipeline: Callable[..., DataPipeline]) -> None:
    data = pipeline(source(10, broken=lambda index: index == 3))
    assert_same(batches(data, first), batches(data)[first:])
    assert batches(data, first=6) == []


@pytest.mark.parametrize("source", SOURCES)
def test_the_processes_parts_and_micro_batches_make_up_the_global_batch(
    source: Any, pipeline: Callable[..., DataPipeline]
) -> None:
    data = pipeline(source(11), batch_size=8, partitions=2)
    shares = [batches(data, share=BatchShard(rank, processes=2, gradient_accumulation_steps=2)) for rank in range(2)]
    for step, (batch,) in enumerate(batches(data)):
        parts = [shares[rank][step][micro] for micro in range(2) for rank in range(2)]
        names, images = [name for part in parts for name in part.names], torch.cat([part.images for part in parts])
        order = list(range(8))
        if (
            source is Strided
        ):  # of a stream, every micro-batch takes from every partition: the same batch in another order
            assert names != batch.names
            order = [
                index for partition in range(2) for micro in range(2) for index in (4 * micro + 2 * partition,) * 2
            ]
            order = [index + place % 2 for place, index in enumerate(order)]
        assert [names[index] for index in order] == batch.names
        assert torch.equal(images[order], batch.images)


@pytest.mark.parametrize("source", SOURCES)
def test_workers_change_nothing(source: Any, pipeline: Callable[..., DataPipeline]) -> None:
    broken = {"broken": lambda index: index == 2}
    alone, helped = pipeline(source(10, **broken)), pipeline(source(10, **broken), workers=2)
    assert_same(batches(helped), batches(alone))
    random_state = torch.get_rng_state()
    batches(helped, steps=2)
    assert torch.equal(torch.get_rng_state(), random_state), "the state that dropout draws from, part of a checkpoint"


@pytest.mark.parametrize("source", SOURCES)
def test_broken_items_are_replaced_and_named(source: Any, pipeline: Callable[..., DataPipeline]) -> None:
    steps = batches(pipeline(source(10, broken=lambda index: index in (3, 7)), partitions=2))
    assert all(len(batch) == len(batch.names) == 4 for (batch,) in steps)
    assert not {"3", "7"} & {name for (batch,) in steps for name in batch.names}
    skipped = [str(item) for (batch,) in steps for item in batch.skipped]
    assert set(skipped) == {"3: truncated", "7: truncated"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", SOURCES)
def test_nothing_but_broken_items_is_one_clear_error(
    source: Any, workers: int, pipeline: Callable[..., DataPipeline]
) -> None:
    data = pipeline(source(10, broken=lambda _: True), workers=workers)
    with pytest.raises(DataError, match=r"^\d+ unusable items in a row.*the first: .*truncated") as caught:
        batches(data)
    assert "\n" not in str(caught.value)


def test_less_data_than_a_batch_is_one_clear_error(pipeline: Callable[..., DataPipeline]) -> None:
    with pytest.raises(DataError, match=r"holds 3 images, fewer than one batch of 4; lower data\.batch_size"):
        pipeline(Numbers(3))
    names = batches(pipeline(Strided(3), partitions=1))[0][0].names
    assert set(names) == {"0", "1", "2"}, "a stream's length is not known"


def test_a_batch_that_does_not_divide_is_one_clear_error(pipeline: Callable[..., DataPipeline]) -> None:
    with pytest.raises(DataError, match=r"batch_size 6 does not divide into 2 processes x 2 micro-batches.* 4"):
        batches(pipeline(batch_size=6), share=BatchShard(0, 2, 2))


@pytest.mark.parametrize("source", SOURCES)
def test_val_batches(source: Any, pipeline: Callable[..., DataPipeline]) -> None:
    val = source(7, broken=lambda index: index == 1, first=1000)
    data = pipeline(val=val, val_limit=5)
    whole = list(data.val_batches(batch_size=2))
    # The place of what is broken is taken by another, where there is an index.
    first = ["1000", "1006"] if source is Numbers else ["1000"]
    assert [batch.names for batch in whole] == [first, ["1002", "1003"], ["1004"]]
    assert [item.name for item in whole[0].skipped] == ["1001"]
    assert not whole[1].skipped
    for rank in range(2):
        mine = list(data.val_batches(rank, processes=2, batch_size=2))
        assert [batch.names for batch in mine] == [batch.names for batch in whole][rank::2]
    again = list(data.val_batches(batch_size=2))
    assert all(torch.equal(one.images, two.images) for one, two in zip(whole, again, strict=True)), "no random crops"


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("source", SOURCES)
def test_each_process_decodes_its_share_of_the_val_sample_alone(
    source: Any, processes: int, even: bool, pipeline: Callable[..., DataPipeline]
) -> None:
    decoded: list[int] = []

    def broken(index: int) -> bool:
        decoded.append(index)
        return index in (0, 1, 4, 23)  # the first batch, one in a batch, one that would take a place

    data = pipeline(val=source(24, broken=broken, first=1000), val_limit=13)
    seen: list[str] = []
    skipped: list[str] = []
    counts, decodings = [], []
    for rank in range(processes):
        decoded.clear()
        batches = list(data.val_batches(rank, processes, batch_size=2, even=even))
        counts.append(len(batches))
        stand_ins = sum(batch.repeated for batch in batches)
        decodings.append(len(decoded) - 6 * stand_ins)  # a stand-in takes at most six to find
        seen += [name for batch in batches if not batch.repeated for name in batch.names]
        skipped += [item.name for batch in batches for item in batch.skipped]
    expected = {str(1000 + index) for index in range(13)} - {"1000", "1001", "1004"}
    if source is Numbers:
        expected |= {"1013", "1014", "1017"}
    assert sorted(seen) == sorted(expected), "each once, whatever the number of processes"
    assert sorted(skipped) == ["1000", "1001", "1004"], "none is lost"
    assert max(decodings) <= 2 * -(-7 // processes) + 3
    if even:
        assert len(set(counts)) == 1, "as many batches on every process"


def test_what_is_broken_at_the_end_is_told_with_the_last_batch(pipeline: Callable[..., DataPipeline]) -> None:
    data = pipeline(val=Numbers(6, broken=lambda index: index > 1, first=1000))
    (batch,) = data.val_batches(batch_size=2)
    assert batch.names == ["1000", "1001"]
    assert [item.name for item in batch.skipped] == ["1002", "1003", "1004", "1005"]


def test_it_is_said_how_many_val_images_are_used_of_how_many(pipeline: Callable[..., DataPipeline]) -> None:
    said = pipeline(val=Numbers(700), val_limit=512).describe()
    assert "700 images held out, of which evaluations use 512, a fixed random sample, 4 a step" in said
    assert "10 images to train on, 512 images held out, 4 a step" in pipeline(val=Numbers(512)).describe()
    assert "of which evaluations use the first 512 images: no random sample" in pipeline(val=Strided(700)).describe()


def test_preview_batch(pipeline: Callable[..., DataPipeline]) -> None:
    data = pipeline(val=Numbers(7, broken=lambda index: index == 0, first=1000))
    assert data.preview_batch(3).names == ["1001", "1002", "1003"]
    assert data.preview_batch(2, "train").names == ["0", "1"]
    with pytest.raises(DataError, match=r"no usable image in the val split; skipped 7, the first: 1000: trunc"):
        pipeline(val=Numbers(7, broken=lambda _: True, first=1000)).preview_batch(3)


@pytest.mark.parametrize("source", SOURCES)
def test_captions_for_the_text_tokenizer(source: Any, pipeline: Callable[..., DataPipeline]) -> None:
    data = pipeline(source(10, broken=lambda index: index == 1))
    assert sorted(data.captions(100), key=lambda text: int(text.split()[1])) == [
        f"number {index}" for index in range(10) if index != 1
    ]
    some = list(data.captions(4))
    assert some == list(data.captions(4))
    assert 3 <= len(some) <= 4
    assert {text for text in some if int(text.split()[1]) > 3}, "not of the first four"


def test_captions_alone_are_read_where_the_source_can(pipeline: Callable[..., DataPipeline]) -> None:
    class Labelled(Numbers):
        def captions(self, index: int) -> tuple[str, ...]:
            return () if index == 2 else (f"label {index}",)

        def __getitem__(self, index: int) -> Sample:
            raise AssertionError("no image is needed")

    assert list(pipeline(Labelled(10)).captions(10)) == [f"label {index}" for index in range(10) if index != 2]


def test_a_real_source_end_to_end() -> None:
    config = DataConfig(source=ShapesConfig(train_size=20, val_size=4), transform=CROPS, batch_size=4)
    ((batch,),) = DataPipeline(config, seed=0).training_batches(0, 1, BatchShard())
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.images.abs().max() <= 1
    assert all(caption and caption.startswith("a ") for caption in batch.captions)


def test_a_batch_of_items() -> None:
    skipped = UnusableSample("x", "broken")
    batch = Batch.of([Item(torch.zeros(3, 2, 2), "a", "1", (skipped,)), Item(torch.ones(3, 2, 2), None, "2")])
    assert len(batch) == 2
    assert batch.texts() == ["a", ""]
    assert batch.skipped == (skipped,)
    assert batch.to(torch.device("meta")).images.device.type == "meta"
