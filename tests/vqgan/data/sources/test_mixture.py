"""Mixtures: shares by weight, every source through its own epochs, the same whatever is interrupted or divided."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from PIL import Image

from vqgan.config.schema import ConfigError, load_config, validate
from vqgan.data.batch import Batch
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import Sample, Source, UnusableSample
from vqgan.data.sources import open_source as sources_module
from vqgan.data.sources.mixture import Mixture, MixtureConfig, MixtureStream, mix
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.data.stream import EncodedSample


class Items:
    """`count` items of a name, some broken."""

    def __init__(self, name: str, count: int, broken: tuple[int, ...] = ()) -> None:
        self.name, self.count, self.broken = name, count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        assert 0 <= index < self.count
        if index in self.broken:
            raise UnusableSample(str(index), "truncated")
        return Sample(Image.new("RGB", (8, 8), (index, 0, 0)), f"{self.name} {index}", str(index))


class Row:
    """A stream: partition l of L has items l, l + L, ..., again and again."""

    def __init__(self, name: str, count: int) -> None:
        self.items = Items(name, count)

    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:  # noqa: ARG002
        mine = range(partition, self.items.count, partitions)
        while True:
            index = mine[start % len(mine)]
            yield EncodedSample(str(index), lambda index=index: self.items[index])  # type: ignore[misc]
            start += 1

    def iterate(self) -> Iterator[EncodedSample]:
        return (EncodedSample(str(i), lambda i=i: self.items[i]) for i in range(self.items.count))  # type: ignore[misc]


def pipeline(monkeypatch: pytest.MonkeyPatch, parts: list[Any], weights: list[float], **settings: Any) -> DataPipeline:
    """A pipeline on a mixture of `parts`, each of which stands for a shapes source of its own seed."""
    monkeypatch.setattr(sources_module, "Shapes", lambda config, _split, _size: parts[config.seed])
    listed = [
        {"weight": weight, "name": "abc"[number], "source": {"kind": "shapes", "seed": number}}
        for number, weight in enumerate(weights)
    ]
    values = {"source": {"kind": "mixture", "sources": listed}, "transform": {"image_size": 8}, "batch_size": 8}
    return DataPipeline(validate(DataConfig, values | settings, "test"), seed=0)


def names(data: DataPipeline, first: int = 0, steps: int = 12, share: BatchShard = BatchShard()) -> list[list[str]]:  # noqa: B008
    return [[name for batch in step for name in batch.names] for step in data.training_batches(first, steps, share)]


def test_each_batch_has_the_weights_shares_and_each_source_its_own_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = names(pipeline(monkeypatch, [Items("a", 9), Items("b", 50)], [3, 1]))
    assert all(Counter(name[0] for name in step) == {"a": 6, "b": 2} for step in steps)
    of_a = [name for step in steps for name in step if name[0] == "a"]
    epochs = [of_a[start : start + 9] for start in range(0, 72, 9)]
    assert all(sorted(epoch) == [f"a: {index}" for index in range(9)] for epoch in epochs)
    assert epochs[0] != epochs[1]
    of_b = [name for step in steps for name in step if name[0] == "b"]
    assert len(set(of_b)) == len(of_b) == 24, "nothing twice before the epoch's end"


PARTS: dict[str, list[Any]] = {
    "indexable": [Items("a", 9, broken=(3,)), Items("b", 30)],
    "streams": [Row("a", 9), Row("b", 30)],
    "both": [Row("a", 9), Items("b", 30, broken=(3,))],
}


@pytest.mark.parametrize("kind", PARTS)
def test_resuming_processes_and_workers_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(**settings: Any) -> DataPipeline:
        return pipeline(monkeypatch, PARTS[kind], [2, 1], partitions=4, **settings)

    data = built()
    whole = names(data)
    assert names(data, first=7) == whole[7:]
    shares = [names(data, share=BatchShard(rank, 2)) for rank in range(2)]
    assert [one + other for one, other in zip(*shares, strict=True)] == whole
    assert names(built(workers=2), steps=4) == whole[:4]
    shown = Counter(name[0] for step in whole for name in step)
    assert shown["a"] == pytest.approx(64, abs=6), "two thirds of 96"


def test_a_broken_item_is_replaced_from_its_own_source_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pipeline(monkeypatch, [Items("a", 9, broken=(3, 4)), Items("b", 50)], [1, 1])
    batches: list[Batch] = [batch for (batch,) in data.training_batches(0, 6, BatchShard())]
    assert all(Counter(name[0] for name in batch.names) == {"a": 4, "b": 4} for batch in batches)
    assert {str(item) for batch in batches for item in batch.skipped} == {"a: 3: truncated", "a: 4: truncated"}
    assert not {"a: 3", "a: 4"} & {name for batch in batches for name in batch.names}


@pytest.mark.parametrize("kind", ["indexable", "streams", "both"])
def test_one_pass_is_mixed_from_its_beginning_and_shows_everything_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "indexable": [Items("a", 4), Items("b", 20)],
        "streams": [Row("a", 4), Row("b", 20)],
        "both": [Items("a", 4), Row("b", 20)],
    }[kind]
    data = pipeline(monkeypatch, parts, [1, 1], val_limit=100)
    val = [name for batch in data.val_batches(batch_size=5) for name in batch.names]
    assert Counter(name[0] for name in val[:8]) == {"a": 4, "b": 4}
    assert val[8:] == [f"b: {index}" for index in range(4, 20)], "the small one has ended"
    assert sorted(val) == sorted([f"a: {i}" for i in range(4)] + [f"b: {i}" for i in range(20)])
    assert {text[0] for text in data.captions(4)} == {"a", "b"}, "so a vocabulary is learned from all"


@pytest.mark.parametrize("weights", [[1.0, 1.0], [7.0, 2.0, 1.0]])
def test_the_partitions_of_one_batch_do_not_all_show_the_same_source(weights: list[float]) -> None:
    rows = [Row("abc"[number], 1000) for number in range(len(weights))]
    stream = MixtureStream(rows, "abc", weights)
    partitions = [[item.name for item in islice(stream.partition(partition, 16, 0), 40)] for partition in range(16)]
    for column in zip(*partitions, strict=True):
        share = sum(name[0] == "a" for name in column) / 16
        assert share == pytest.approx(weights[0] / sum(weights), abs=0.26)
    for partition in partitions:
        assert sum(name[0] == "a" for name in partition) == pytest.approx(40 * weights[0] / sum(weights), abs=2)


def test_an_indexable_source_among_streams_is_divided_among_the_partitions() -> None:
    stream = MixtureStream([Items("a", 10), Row("b", 10)], "ab", [1, 1])
    partitions = [
        islice((item for item in stream.partition(partition, 4, 5) if item.name[0] == "a"), 5) for partition in range(4)
    ]
    shown = Counter(item.name for partition in partitions for item in partition)
    assert shown == {f"a: item {index}": 2 for index in range(10)}, "two epochs of ten in four partitions of five"


def test_what_a_mixture_is_made_of() -> None:
    part = {"source": {"kind": "shapes", "train_size": 5, "val_size": 3}}
    config = validate(MixtureConfig, {"sources": [part, {**part, "weight": 2}]}, "test")
    assert config.names() == ["1 shapes", "2 shapes"]
    built = sources_module.open_source(config, "train", 8)
    assert isinstance(built, Mixture)
    assert isinstance(built, Source)
    assert len(built) == 10
    assert {built[index].name for index in range(10)} == {f"{n} shapes: shapes-{i}" for n in (1, 2) for i in range(5)}
    with pytest.raises(IndexError):
        built[10]
    assert isinstance(mix(config, [Items("a", 3), Row("b", 3)]), MixtureStream)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[]", "a mixture of no data sets"),
        ("[{weight: 0, source: {kind: shapes}}]", r"source\.sources\.0\.weight: input should be greater than 0"),
        ("[{weigt: 2, source: {kind: shapes}}]", r"unknown key .*; did you mean source\.sources\.0\.weight\?"),
        ("[{source: {kind: folder, pth: x}}]", r"did you mean source\.sources\.0\.source\.path\?"),
        ("[{source: {kind: shape}}]", r"sources\.0\.source\.kind: 'shape' is not a kind; did you mean shapes\?"),
        ("[{source: {kind: shapes}}, {name: 1 shapes, source: {kind: shapes}}]", "the same name"),
        ("[{source: {kind: mixture, sources: [{source: {kind: shapes}}]}}]", "a mixture inside of a mixture"),
    ],
)
def test_a_wrong_mixture_is_one_clear_line(sources: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(DataConfig, None, ["--source", f"{{kind: mixture, sources: {sources}}}"])
    assert "\n" not in str(caught.value)


def test_a_single_source_has_the_order_that_it_always_had() -> None:
    config = DataConfig(source=ShapesConfig(train_size=20, val_size=4), batch_size=5)
    steps = names(DataPipeline(config, seed=3), steps=2)
    assert steps == [[f"shapes-{i}" for i in (16, 12, 18, 8, 3)], [f"shapes-{i}" for i in (13, 15, 10, 6, 1)]]
