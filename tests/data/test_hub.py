"""The `dataset` source on local files: columns, broken rows, hold-out, streams. Nothing here touches the network."""

import io
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from vqgan.data.hub import DatasetConfig, HubDataset, HubStream
from vqgan.data.source import DataError, Sample, Split, UnusableSample


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


def streamed(stream: HubStream, epoch: int = 0, seed: int = 0) -> list[str]:
    return [str(item.caption) if isinstance(item, Sample) else item.cause for item in stream.samples(epoch, seed)]


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
    config = DatasetConfig(name=str(path), heldout_count=8)
    if streaming:
        train, heldout = (streamed(HubStream(config, split)) for split in ("train", "heldout"))
        assert heldout == [f"shade {number}" for number in range(8)]
    else:
        sources = [HubDataset(config, split) for split in ("train", "heldout")]
        train, heldout = map(captions, sources)
        sample = sources[0][0]
        assert sample.caption == f"shade {shade(sample)}"
        assert sample.name.endswith(f"row {shade(sample)}")
        assert sample.image.mode == "RGB"
    assert sorted(train + heldout) == everything(40)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_named_held_out_split(tmp_path: Path, streaming: bool) -> None:
    datasets.DatasetDict({"train": table(9), "validation": table(5, start=100)}).save_to_disk(str(tmp_path / "saved"))
    config = DatasetConfig(name=str(tmp_path / "saved"), heldout_split="validation")
    for split, expected in (("train", range(9)), ("heldout", range(100, 105))):
        found = streamed(HubStream(config, split)) if streaming else captions(HubDataset(config, split))
        assert sorted(found) == sorted(f"shade {number}" for number in expected)


def test_rows_added_at_the_end_leave_the_split_as_it_was(tmp_path: Path) -> None:
    found: dict[tuple[int, Split], set[str]] = {}
    for count in (60, 90):
        config = DatasetConfig(name=parquet(tmp_path / f"{count}.parquet", count), heldout_share=0.2)
        for split in ("train", "heldout"):
            found[count, split] = set(captions(HubDataset(config, split)))
    assert found[60, "train"] <= found[90, "train"]
    assert found[60, "heldout"] <= found[90, "heldout"]
    assert 5 <= len(found[60, "heldout"]) <= 20


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


CAUSES = ["cannot be decoded", "0 bytes", "no picture", "no caption", "the file is missing"]


def test_broken_rows_cost_only_themselves(tmp_path: Path) -> None:
    config = DatasetConfig(name=broken(tmp_path / "a.parquet"), heldout_split="train")
    source = HubDataset(config, "heldout", require_captions=True)
    assert source[0].caption == "shade 0"
    for index, cause in enumerate(CAUSES, start=1):
        with pytest.raises(UnusableSample, match=f"row {index}: .*{cause}"):
            source[index]
    assert HubDataset(config, "heldout")[4].caption is None


def test_broken_rows_do_not_end_a_stream(tmp_path: Path) -> None:
    config = DatasetConfig(name=broken(tmp_path / "a.parquet"), heldout_split="train")
    items = list(HubStream(config, "heldout", require_captions=True).samples(0, 0))
    assert isinstance(items[0], Sample)
    for item, cause in zip(items[1:], CAUSES, strict=True):
        assert isinstance(item, UnusableSample)
        assert cause in item.cause


def test_a_stream_is_shuffled_by_seed_and_epoch_except_held_out(tmp_path: Path) -> None:
    config = DatasetConfig(name=parquet(tmp_path / "a.parquet"), heldout_count=5)
    train, heldout = HubStream(config, "train"), HubStream(config, "heldout")
    first = streamed(train, 0, 0)
    assert first == streamed(train, 0, 0)
    orders = {tuple(first), tuple(streamed(train, 1, 0)), tuple(streamed(train, 0, 1)), tuple(sorted(first))}
    assert len(orders) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert streamed(heldout, 0, 0) == streamed(heldout, 3, 4) == [f"shade {number}" for number in range(5)]


class _Captions(torch.utils.data.IterableDataset):
    def __init__(self, stream: HubStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[str]:
        return iter(streamed(self.stream))


def test_the_workers_of_a_loader_never_see_a_held_out_row(tmp_path: Path) -> None:
    for number in range(4):
        parquet(tmp_path / "data" / f"train-{number}.parquet", 10, start=10 * number)
    config = DatasetConfig(name=str(tmp_path / "data"), heldout_count=7)
    loader = torch.utils.data.DataLoader(_Captions(HubStream(config, "train")), batch_size=None, num_workers=2)
    seen = list(loader)
    assert len(seen) == len(set(seen))
    assert not set(seen) & set(streamed(HubStream(config, "heldout")))
    assert len(seen) >= 40 - 2 * 7


def test_held_out_rows_at_the_front_have_one_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = parquet(tmp_path / "a.parquet", 9)
    front = HubStream(DatasetConfig(name=name, heldout_count=3), "heldout")
    for workers, works in ((1, True), (2, False)):
        info = types.SimpleNamespace(num_workers=workers, id=0)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
        if works:
            assert len(streamed(front)) == 3
        else:
            with pytest.raises(DataError, match="2 workers would each read"):
                streamed(front)


def test_what_a_caption_may_be(tmp_path: Path) -> None:
    name = parquet(tmp_path / "a.parquet", 4)

    def caption(column: str | None, source: str = name) -> str | None:
        config = DatasetConfig(name=source, caption_column=column, heldout_split="train")
        dataset = HubDataset(config, "heldout")
        sample = dataset[1]
        assert dataset.caption(1) == sample.caption
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


def test_paths_and_plain_bytes_as_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(7))
    paths = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "text": ["x"]})
    paths.to_json(str(tmp_path / "a.jsonl"))
    datasets.Dataset.from_dict({"image": [encoded(7)], "text": ["x"]}).to_parquet(str(tmp_path / "b.parquet"))
    for name in ("a.jsonl", "b.parquet"):
        config = DatasetConfig(name=str(tmp_path / name), heldout_split="train")
        assert shade(HubDataset(config, "heldout")[0]) == 7
        (item,) = HubStream(config, "heldout").samples(0, 0)
        assert isinstance(item, Sample)
        assert shade(item) == 7


@pytest.mark.parametrize("kind", [HubDataset, HubStream])
def test_mistakes_are_one_line_with_a_remedy(tmp_path: Path, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    name = parquet(tmp_path / "a.parquet", 4)

    def opening(require_captions: bool = False, **fields: Any) -> str:
        with pytest.raises(DataError) as caught:
            kind(DatasetConfig(**{"name": name, **fields}), "heldout", require_captions=require_captions)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no column 'images', it has: image, text, label; did you mean 'image'?" in opening(image_column="images")
    assert "no column 'caption', it has: image, text, label; set caption_column (null" in opening(
        caption_column="caption"
    )
    assert "needs captions and caption_column is null" in opening(caption_column=None, require_captions=True)
    assert "column 'label' holds ClassLabel(names=['even', 'odd'])" in opening(image_column="label")
    assert "does not exist" in opening(name=str(tmp_path / "gone.parquet"))
    assert "validation" in opening(heldout_split="validation")
    assert "cannot be opened" in opening(name="nobody/has-such-a-data-set")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    assert "cannot be opened" in opening(name=str(tmp_path / "b.parquet"))
    (tmp_path / "c.xyz").write_bytes(b"?")
    assert "cannot tell what" in opening(name=str(tmp_path / "c.xyz"))
    table(3).save_to_disk(str(tmp_path / "plain"))
    assert "saved without splits" in opening(name=str(tmp_path / "plain"), heldout_split="test")
    datasets.DatasetDict({"train": table(3)}).save_to_disk(str(tmp_path / "dict"))
    assert "no split 'test', it has: train" in opening(name=str(tmp_path / "dict"), heldout_split="test")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nroute")))
    assert "no route; check the name, and the network" in opening(name="owner/name")
