"""A vocabulary's captions: from all over a data set, whatever its order, and without its images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.vqgan.data.tiny_shards import write_shard
from vqgan.data.caption_sample import sampled_captions
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.source import DataError, Sample
from vqgan.data.sources.folder import Folder, FolderConfig
from vqgan.data.sources.huggingface_files import DatasetConfig
from vqgan.data.sources.mixture import MixedSourceConfig, MixtureConfig
from vqgan.data.sources.open_source import SourceConfig, open_source
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.data.stream import EncodedSample, broken_sample

NO_IMAGE = b"not an image: whoever decodes it fails"


def shards_by_class(folder: Path, shards: int, each: int, classes: int) -> ShardsConfig:
    """Captions `class K`, in the order of the classes; no image can be decoded."""
    total = shards * each
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        members = [
            member
            for number in numbers
            for member in (
                (f"{number:06d}.png", NO_IMAGE),
                (f"{number:06d}.txt", f"class {number * classes // total}".encode()),
            )
        ]
        write_shard(folder / f"{shard:04d}.tar", members)
    return ShardsConfig(path=str(folder), streaming=True, val_fraction=0.01)


def rows_by_class(folder: Path, files: int, each: int, classes: int) -> DatasetConfig:
    folder.mkdir(exist_ok=True)
    for file in range(files):
        numbers = range(file * each, (file + 1) * each)
        images = [{"bytes": NO_IMAGE, "path": None} for _ in numbers]
        texts = [f"class {number * classes // (files * each)}" for number in numbers]
        parquet.write_table(pa.table({"image": images, "text": texts}), folder / f"{file:03d}.parquet")
    return DatasetConfig(name=str(folder), streaming=True, val_count=1)


def sampled(source: SourceConfig, count: int) -> list[str]:
    data = open_source(source, "train", 16, require_captions=True)
    return [text for captions in sampled_captions(data, count) for text in captions]


@pytest.mark.parametrize(("parts", "each"), [(1, 600), (6, 100), (150, 4)])
@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_stream_in_the_order_of_its_classes_gives_all_of_them_without_a_image(
    kind: str, parts: int, each: int, tmp_path: Path
) -> None:
    if kind == "parquet" and parts > 100:
        pytest.skip("as many shards are test enough, and faster")
    build = shards_by_class if kind == "shards" else rows_by_class
    source = build(tmp_path / "data", parts, each, 10)
    found = sampled(source, 60)
    assert found == sampled(source, 60)
    assert 50 <= len(found) <= 60
    counts = Counter(found)
    assert len(counts) == 10, counts
    assert max(counts.values()) <= 12, "of every class about as many"


def test_all_are_given_where_all_are_wanted(tmp_path: Path) -> None:
    found = sampled(shards_by_class(tmp_path / "tar", 3, 30, 90), 10_000)
    assert len(found) == len(set(found)) >= 85
    assert len(sampled(rows_by_class(tmp_path / "rows", 2, 30, 60), 10_000)) == 59


def test_an_indexed_source_gives_a_random_sample(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(300):
        (tmp_path / "images" / f"{number:03d}.png").write_bytes(NO_IMAGE)
        (tmp_path / "images" / f"{number:03d}.txt").write_text(f"class {number // 30}")
    folder = Folder(FolderConfig(path=str(tmp_path / "images")), "train", require_captions=True)
    found = [text for captions in sampled_captions(folder, 60) for text in captions]
    assert len(found) == 60
    assert len(set(found)) == 10


def test_shapes_are_not_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = Shapes(ShapesConfig(train_size=20), "train", 16)
    generated = [(shapes[index].caption,) for index in range(20)]
    monkeypatch.setattr("vqgan.data.sources.shapes.render", None)
    assert list(sampled_captions(shapes, 20)) == generated


def test_a_mixture_gives_captions_by_its_weights(tmp_path: Path) -> None:
    shards = shards_by_class(tmp_path / "tar", 4, 50, 5)
    parts = (
        MixedSourceConfig(weight=3, source=shards),
        MixedSourceConfig(weight=1, source=ShapesConfig(train_size=500, val_size=4)),
    )
    found = sampled(MixtureConfig(sources=parts), 80)
    of_shards = [text for text in found if text.startswith("class")]
    assert 55 <= len(of_shards) <= 60
    assert len(set(of_shards)) == 5
    assert len(found) - len(of_shards) == 20


def test_unreadable_shards_are_passed_over_and_many_in_a_row_are_one_line(tmp_path: Path) -> None:
    source = shards_by_class(tmp_path / "tar", 12, 20, 12)
    for shard in (0, 3, 6):
        (tmp_path / "tar" / f"{shard:04d}.tar").write_bytes(b"x" * 10_000)
    assert len(set(sampled(source, 90))) == 9
    for path in (tmp_path / "tar").glob("*.tar"):
        path.write_bytes(b"x" * 10_000)
    with pytest.raises(DataError, match="no caption can be read of 5 files of the stream in a row"):
        sampled(source, 90)


def test_a_stream_without_parts_is_read_from_its_front_but_not_only_there() -> None:
    class Plain:
        def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:  # noqa: ARG002
            raise AssertionError

        def iterate(self) -> Iterator[EncodedSample]:
            def load() -> Sample:
                raise AssertionError("no image is needed")

            yield broken_sample("first", "broken")
            for number in range(1000):
                yield EncodedSample(str(number), load, lambda number=number: (f"number {number}",))  # type: ignore[misc]

    found = [int(text.split()[1]) for (text,) in sampled_captions(Plain(), 50)]
    assert 49 <= len(found) <= 50
    assert max(found) > 150


def test_a_pipeline_gives_them_too(tmp_path: Path) -> None:
    source = shards_by_class(tmp_path / "tar", 8, 25, 8)
    data = DataPipeline(DataConfig(source=source, batch_size=4), seed=3, require_captions=True)
    assert len(set(data.captions(40))) == 8
