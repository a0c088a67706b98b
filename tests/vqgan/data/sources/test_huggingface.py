"""The `dataset` source on local files: columns, broken rows, hold-out, streams. Nothing here touches the network."""

import io
import re
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import DataError, Sample, Split, UnusableSample
from vqgan.data.sources.huggingface import DatasetConfig, HubDataset, HubStream, _HubPartition
from vqgan.data.stream import EncodedSample


@pytest.fixture(autouse=True)
def _no_network_and_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def table(count: int, start: int = 0) -> datasets.Dataset:
    shades = range(start, start + count)
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": encoded(shade), "path": None} for shade in shades],
            "text": [f"shade {shade}" for shade in shades],
            "label": [shade % 2 for shade in shades],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(decode=False),
                "text": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["even", "odd"]),
            }
        ),
    )


def parquet(path: Path, count: int = 40, start: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table(count, start).to_parquet(str(path))
    return str(path)


def captions(source: HubDataset) -> list[str]:
    return [str(source[index].caption) for index in range(len(source))]


def streamed(items: Iterator[EncodedSample]) -> list[str]:
    """The captions of items, or why they are not usable."""
    found = []
    for item in items:
        try:
            found.append(str(item.load().caption))
        except UnusableSample as unusable:
            found.append(unusable.cause)
    return found


def epochs(
    stream: HubStream, count: int, length: int, partitions: int = 1, partition: int = 0, seed: int = 0
) -> list[list[str]]:
    """The first epochs of a partition that holds `length` items."""
    items = streamed(islice(stream.partition(partition, partitions, seed), count * length))
    return [items[start : start + length] for start in range(0, len(items), length)]


def shade(sample: Sample) -> int:
    value = sample.image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return int(value[0])


def everything(count: int) -> list[str]:
    return sorted(f"shade {number}" for number in range(count))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "parquet folder", "saved", "saved splits"])
@pytest.mark.parametrize("streaming", [False, True])
def test_local_files_and_folders(tmp_path: Path, kind: str, streaming: bool) -> None:
    path = tmp_path / "data"
    if kind == "parquet":
        path = Path(parquet(tmp_path / "a.parquet"))
    elif kind == "arrow":
        table(40).save_to_disk(str(tmp_path / "saved"))
        path = tmp_path / "a.arrow"
        next((tmp_path / "saved").glob("*.arrow")).rename(path)
    elif kind == "parquet folder":
        parquet(path / "train-00000.parquet", 25)
        parquet(path / "train-00001.parquet", 15, start=25)
    elif kind == "saved":
        table(40).save_to_disk(str(path))
    else:
        datasets.DatasetDict({"train": table(40), "validation": table(7)}).save_to_disk(str(path))
    config = DatasetConfig(name=str(path), val_count=8)
    if streaming:
        train, val = (streamed(HubStream(config, split).iterate()) for split in ("train", "val"))
        assert val == [f"shade {number}" for number in range(8)]
    else:
        sources = [HubDataset(config, split) for split in ("train", "val")]
        train, val = map(captions, sources)
        sample = sources[0][0]
        assert sample.caption == f"shade {shade(sample)}"
        assert sample.name.endswith(f"row {shade(sample)}")
        assert sample.image.mode == "RGB"
    assert sorted(train + val) == everything(40)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_named_val_split(tmp_path: Path, streaming: bool) -> None:
    datasets.DatasetDict({"train": table(9), "validation": table(5, start=100)}).save_to_disk(str(tmp_path / "saved"))
    config = DatasetConfig(name=str(tmp_path / "saved"), val_split="validation")
    for split, expected in (("train", range(9)), ("val", range(100, 105))):
        found = streamed(HubStream(config, split).iterate()) if streaming else captions(HubDataset(config, split))
        assert sorted(found) == sorted(f"shade {number}" for number in expected)


def test_rows_added_at_the_end_leave_the_split_as_it_was(tmp_path: Path) -> None:
    found: dict[tuple[int, Split], set[str]] = {}
    for count in (60, 90):
        config = DatasetConfig(name=parquet(tmp_path / f"{count}.parquet", count), val_fraction=0.2)
        for split in ("train", "val"):
            found[count, split] = set(captions(HubDataset(config, split)))
    assert found[60, "train"] <= found[90, "train"]
    assert found[60, "val"] <= found[90, "val"]
    assert 5 <= len(found[60, "val"]) <= 20


def broken(path: Path) -> str:
    rows = table(6).to_list()
    rows[1]["image"] = {"bytes": encoded(1)[:45], "path": None}
    rows[2]["image"] = {"bytes": b"", "path": None}
    rows[3]["image"] = None
    rows[4]["text"] = " "
    rows[5]["image"] = {"bytes": None, "path": str(path.parent / "gone.png")}
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(table(1).features | {"image": plain})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return str(path)


CAUSES = ["cannot be decoded", "0 bytes", "no image", "no caption", "the file is missing: '/.*gone.png'"]


def test_broken_rows_cost_only_themselves(tmp_path: Path) -> None:
    config = DatasetConfig(name=broken(tmp_path / "a.parquet"), val_split="train")
    source = HubDataset(config, "val", require_captions=True)
    assert source[0].caption == "shade 0"
    for index, cause in enumerate(CAUSES, start=1):
        with pytest.raises(UnusableSample, match=f"row {index}: .*{cause}"):
            source[index]
    assert HubDataset(config, "val")[4].caption is None


def test_broken_rows_do_not_end_a_stream(tmp_path: Path) -> None:
    config = DatasetConfig(name=broken(tmp_path / "a.parquet"), val_split="train")
    items = streamed(HubStream(config, "val", require_captions=True).iterate())
    assert items[0] == "shade 0"
    assert all(re.search(cause, item) for item, cause in zip(items[1:], CAUSES, strict=True))


def test_a_partition_is_shuffled_anew_every_epoch(tmp_path: Path) -> None:
    config = DatasetConfig(name=parquet(tmp_path / "a.parquet"), val_count=5)
    train, val = HubStream(config, "train"), HubStream(config, "val")
    first, second = epochs(train, 2, length=35)
    assert [first, second] == epochs(train, 2, length=35)
    orders = {tuple(order) for order in (first, second, *epochs(train, 1, 35, seed=1), sorted(first))}
    assert len(orders) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(f"shade {number}" for number in range(5, 40)))}
    assert streamed(val.iterate()) == [f"shade {number}" for number in range(5)]


@pytest.mark.parametrize("files", [1, 4, 7])
def test_partitions_divide_the_rows_among_them_whatever_the_number_of_files(tmp_path: Path, files: int) -> None:
    count = 42 // files
    for number in range(files):
        parquet(tmp_path / "data" / f"train-{number}.parquet", count, start=count * number)
    train = HubStream(DatasetConfig(name=str(tmp_path / "data"), val_count=2), "train")
    seen: list[str] = []
    for partition in range(3):
        (mine,) = epochs(
            train, 1, len(list(_HubPartition(train, partition, 3).epoch(np.random.default_rng(0), 0)[1])), 3, partition
        )
        assert 8 <= len(mine) <= 18
        seen += mine
    assert sorted(seen) == sorted(f"shade {number}" for number in range(2, files * count))


def test_the_workers_of_a_loader_read_all_rows_once_and_no_val_one(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-0.parquet", 12)
    parquet(tmp_path / "data" / "train-1.parquet", 8, start=12)
    source = DatasetConfig(name=str(tmp_path / "data"), val_count=4, streaming=True)
    transform = TransformConfig(image_size=4)
    seen = []
    for workers in (0, 2):
        config = DataConfig(source=source, transform=transform, batch_size=4, partitions=4, workers=workers)
        batches = DataPipeline(config, seed=0).training_batches(0, 4, BatchShard())
        seen.append([str(caption) for (batch,) in batches for caption in batch.captions])
    assert seen[0] == seen[1]
    assert sorted(seen[0]) == sorted(f"shade {number}" for number in range(4, 20))


def with_a_broken_row_group(path: Path) -> Path:
    """Forty rows in four row groups, of which the third cannot be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table(40).to_parquet(str(path), batch_size=10)
    groups = pyarrow.parquet.ParquetFile(path).metadata
    assert groups.num_row_groups == 4
    content = bytearray(path.read_bytes())
    start = groups.row_group(2).column(0).data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("folder", [False, True])
def test_a_broken_row_group_costs_its_rows_each_named(tmp_path: Path, folder: bool) -> None:
    path = with_a_broken_row_group(tmp_path / "data" / "train.parquet")
    config = DatasetConfig(name=str(path.parent if folder else path), val_split="train")
    source = HubDataset(config, "train")
    assert len(source) == 40
    for index in range(40):
        if index // 10 == 2:
            for read in (source.__getitem__, source.captions):
                with pytest.raises(
                    UnusableSample, match=rf"row {index}: row group 2 of train\.parquet cannot be read: "
                ):
                    read(index)
        else:
            assert source[index].caption == f"shade {index}" == f"shade {shade(source[index])}"
    parquet(path, 30)
    assert len(HubDataset(config, "train")) == 30, "a mended file is read anew"
    if folder:
        parquet(path.parent / "train-2.parquet", 5)
        path.write_bytes(b"PAR1 no longer")
        found = HubDataset(config, "train")
        lost = []
        for index in range(len(found)):
            try:
                found.captions(index)
            except UnusableSample as unusable:
                lost.append(unusable.cause)
        assert len(found) == 6
        assert [cause.partition(":")[0] for cause in lost] == ["train.parquet cannot be opened"]


def test_a_broken_row_group_of_a_stream_costs_its_rows_and_is_named(tmp_path: Path) -> None:
    path = with_a_broken_row_group(tmp_path / "a.parquet")
    stream = HubStream(DatasetConfig(name=str(path), val_split="train"), "train")
    for items in (list(stream.iterate()), list(islice(stream.partition(0, 1, 0), 31))):
        found = streamed(iter(items))
        assert sorted(text for text in found if text.startswith("shade")) == sorted(
            f"shade {number}" for number in range(40) if number // 10 != 2
        )
        (lost,) = (item.name for item, text in zip(items, found, strict=True) if not text.startswith("shade"))
        assert lost.endswith("a.parquet row group 2")


def test_a_broken_file_that_has_no_row_groups_costs_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for number in range(9):
            for ending, content in (("png", encoded(number)), ("txt", f"shade {number}".encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    content = path.read_bytes()
    path.write_bytes(content[: 2 * 1024 * 6 + 512 + 20])
    config = DatasetConfig(name=str(path), image_column="png", caption_column="txt", val_split="train")
    found = streamed(HubStream(config, "train").iterate())
    assert found[:-1] == [f"shade {number}" for number in range(6)]
    assert "the rest of the file is lost: " in found[-1]


def test_what_a_caption_may_be(tmp_path: Path) -> None:
    name = parquet(tmp_path / "a.parquet", 4)

    def caption(column: str | None, source: str = name) -> str | None:
        config = DatasetConfig(name=source, caption_column=column, val_split="train")
        dataset = HubDataset(config, "val")
        sample = dataset[1]
        assert dataset.captions(1) == sample.captions
        return sample.caption

    assert caption("text") == "shade 1"
    assert caption("label") == "odd"
    assert caption(None) is None
    rows = table(2).remove_columns(["text", "label"])
    rows = rows.add_column("lists", [["x"], [" ", "two\nlines"]]).add_column("number", [1, 2])
    rows.to_parquet(str(tmp_path / "b.parquet"))
    assert caption("lists", str(tmp_path / "b.parquet")) == "two lines"
    with pytest.raises(UnusableSample, match="its caption is 2, not text"):
        caption("number", str(tmp_path / "b.parquet"))


def test_paths_and_plain_bytes_as_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(7))
    paths = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "text": ["x"]})
    paths.to_json(str(tmp_path / "a.jsonl"))
    datasets.Dataset.from_dict({"image": [encoded(7)], "text": ["x"]}).to_parquet(str(tmp_path / "b.parquet"))
    for name in ("a.jsonl", "b.parquet"):
        config = DatasetConfig(name=str(tmp_path / name), val_split="train")
        assert shade(HubDataset(config, "val")[0]) == 7
        (item,) = HubStream(config, "val").iterate()
        assert shade(item.load()) == 7


@pytest.mark.parametrize("kind", [HubDataset, HubStream])
def test_mistakes_are_one_line_with_a_remedy(tmp_path: Path, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    name = parquet(tmp_path / "a.parquet", 4)

    def opening(require_captions: bool = False, **fields: Any) -> str:
        with pytest.raises(DataError) as caught:
            kind(DatasetConfig(**{"name": name, **fields}), "val", require_captions=require_captions)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no column 'images', it has: image, text, label; did you mean 'image'?" in opening(image_column="images")
    assert "no column 'caption', it has: image, text, label; set caption_column (null" in opening(
        caption_column="caption"
    )
    assert "needs captions and caption_column is null" in opening(caption_column=None, require_captions=True)
    assert "column 'label' holds ClassLabel(names=['even', 'odd'])" in opening(image_column="label")
    assert "does not exist" in opening(name=str(tmp_path / "gone.parquet"))
    assert "validation" in opening(val_split="validation")
    assert "cannot be opened" in opening(name="nobody/has-such-a-data-set")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    assert "cannot be opened" in opening(name=str(tmp_path / "b.parquet"))
    (tmp_path / "c.xyz").write_bytes(b"?")
    assert "cannot tell what" in opening(name=str(tmp_path / "c.xyz"))
    table(3).save_to_disk(str(tmp_path / "plain"))
    assert "saved without splits" in opening(name=str(tmp_path / "plain"), val_split="test")
    datasets.DatasetDict({"train": table(3)}).save_to_disk(str(tmp_path / "dict"))
    assert "no split 'test', it has: train" in opening(name=str(tmp_path / "dict"), val_split="test")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nroute")))
    assert "no route; check the name, and the network" in opening(name="owner/name")
