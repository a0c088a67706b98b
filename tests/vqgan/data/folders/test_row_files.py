"""What a row of a data set may name: files of its own folder. None of this machine's others is opened."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vqgan.data.folders.row_files import RowFiles
from vqgan.data.source import DataError, UnusableSample
from vqgan.data.sources.huggingface import HubDataset, HubStream
from vqgan.data.sources.huggingface_files import DatasetConfig
from vqgan.system.bounded_file import RefusedFileError, open_regular, read_bounded


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, "PNG")
    return path


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Paths that a hostile row may hold, and two that it may."""
    png(tmp_path / "set" / "images" / "own.png")
    (tmp_path / "set" / "link out.png").symlink_to(png(tmp_path / "private.png"))
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "set" / "images" / "own.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    (tmp_path / "set" / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "set" / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    return {
        "own, relative": "images/own.png",
        "own, absolute": str(tmp_path / "set" / "images" / "own.png"),
        "own, by a link": "link.png",
        "outside": str(tmp_path / "private.png"),
        "outside, relative": "../private.png",
        "outside, by a link": "link out.png",
        "a device": "/dev/zero",
        "a device, by a link": "zero.png",
        "a pipe": "pipe.png",
        "a terabyte": "sparse.png",
        "missing": "gone.png",
        "a folder": "images",
        "a name with a zero byte": "a\0b.png",
        "a name of 10,000 characters": "n" * 10_000,
        "an address": "http://127.0.0.1:9/a.png",
        "a file's address": f"file://{tmp_path / 'private.png'}",
        "a chain to a file": f"simplecache::file://{tmp_path / 'private.png'}",
        "another's repository": "hf://datasets/somebody/else/a.png",
    }


WHY = {
    "outside": "leads out of the data set's folder",
    "outside, relative": "leads out of the data set's folder",
    "outside, by a link": "leads out of the data set's folder",
    "a device": "leads out of the data set's folder",
    "a device, by a link": "leads out of the data set's folder",
    "a pipe": "it is a pipe, not a regular file",
    "a terabyte": "the limit is 1,073,741,824",
    "missing": "the file is missing",
    "a folder": "it is a folder, not a regular file",
    "a name with a zero byte": "cannot be read",
    "a name of 10,000 characters": "cannot be read",
    "an address": "is not of this data set's repository",
    "a file's address": "is not of this data set's repository",
    "a chain to a file": "is not of this data set's repository",
    "another's repository": "is not of this data set's repository",
}


KINDS = ["paths.jsonl", "columns.jsonl", "table.csv", "table.parquet"]
FORMS = [(kind, streaming) for kind in KINDS for streaming in (False, True)]
FORMS.remove(("table.csv", True))  # there `datasets` leaves a file open, which is an error in the tests


@pytest.mark.parametrize(("kind", "streaming"), FORMS)
def test_a_row_reads_files_of_its_own_data_set_alone(
    tmp_path: Path, places: dict[str, str], kind: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative path is of the data set, not of where the program was started
    names = [name for name in places if not (kind == "table.csv" and "zero byte" in name)]
    values = [places[name] for name in names]
    path = tmp_path / "set" / kind
    if kind == "paths.jsonl":
        path.write_text("".join(json.dumps({"image": value, "text": "x"}) + "\n" for value in values))
    elif kind == "columns.jsonl":
        rows = [{"image": {"path": value, "bytes": None}, "text": "x"} for value in values]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "table.csv":
        path.write_text("image,text\n" + "".join(f"{value},x\n" for value in values))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = pa.array(
            [{"bytes": None, "path": value} for value in values],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        pq.write_table(pa.table({"image": images, "text": ["x"] * len(values)}), path)
    config = DatasetConfig(name=str(path), val_split="train")
    found = []
    if streaming:
        loads: Any = [item.load for item in HubStream(config, "val").iterate()]
    else:
        source = HubDataset(config, "val")
        loads = [lambda number=number: source[number] for number in range(len(source))]
    for load in loads:
        try:
            found.append(str(load().image.size))
        except UnusableSample as unusable:
            found.append(unusable.cause)
    for name, said in zip(names, found, strict=True):
        assert WHY.get(name, "(4, 4)") in said, (name, said)
        assert len(said) < 600


def test_a_hub_data_set_reads_its_own_repository_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    own = png(tmp_path / "datasets--owner--name" / "snapshots" / "1" / "a.png")
    other = png(tmp_path / "datasets--owner--name2" / "snapshots" / "1" / "a.png")
    files = RowFiles(None, "owner/name")
    assert files.read(str(own), "row") == own.read_bytes()
    for path in (
        str(other),
        "hf://datasets/owner/name2/a.png",
        "hf://datasets/owner/name/../name2/a.png",
        "/etc/hosts",
    ):
        with pytest.raises(UnusableSample, match="refused"):
            files.read(path, "row")


@pytest.mark.parametrize("name", ["set [v2]", "a*b?", "{a,b}", "plain"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_whose_path_reads_as_a_pattern(tmp_path: Path, name: str, streaming: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    rows = {"image": [{"bytes": content.getvalue(), "path": None}] * 6, "text": ["x"] * 6}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(str(folder / "train-0[0].parquet"))
    for path in (folder, folder / "train-0[0].parquet"):
        config = DatasetConfig(name=str(path), val_split="train")
        if streaming:
            assert sum(1 for _ in HubStream(config, "train").iterate()) == 6
        else:
            assert len(HubDataset(config, "train")) == 6


def test_a_data_set_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", Path("/dev/zero")):
        with pytest.raises(DataError, match="is a pipe or a device"):
            HubDataset(DatasetConfig(name=str(path)), "train")


def test_opening_and_reading_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert read_bounded(tmp_path / "ten", 10) == b"0123456789"
    with pytest.raises(RefusedFileError, match="it has 10 bytes, the limit is 9"):
        read_bounded(tmp_path / "ten", 9)
    with pytest.raises(RefusedFileError, match="it has more than 1,000 bytes"):
        read_bounded("/dev/zero", 1000, pipes=True)
    with pytest.raises(RefusedFileError, match="it is a device"):
        read_bounded("/dev/zero", 1000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RefusedFileError, match="it is a pipe"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "gone")
