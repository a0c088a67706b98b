"""A Parquet file that becomes far larger than it is costs one line; one that only repeats itself is read."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.vqgan.data.bounded_child import call_bounded
from vqgan.data.source import DataError
from vqgan.data.sources import parquet_sizes
from vqgan.data.sources.huggingface import HubDataset, HubStream
from vqgan.data.sources.huggingface_files import DatasetConfig
from vqgan.data.sources.parquet_sizes import check_sizes

LARGE = os.urandom(1000) * 900
"""Just below the megabyte at which writers give a dictionary up."""


def repeated(path: Path, rows: int, value: bytes = LARGE, **options: Any) -> Path:
    """One value in many rows."""
    indices = pa.array([0] * rows, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.binary()))
    schema = pa.schema([("image", pa.dictionary(pa.int32(), pa.binary())), ("text", pa.string())])
    table = pa.Table.from_arrays([column, pa.array(["x"] * rows)], schema=schema)
    pq.write_table(table, path, store_schema=False, **options)
    return path


def complaint(path: Path) -> str:
    try:
        check_sizes(path)
    except DataError as error:
        return str(error)
    return ""


def test_a_value_that_a_million_rows_repeat_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_sizes, "_LARGEST_GROUP", 1 << 28)  # to count up to 8 GB takes 8 s
    path = repeated(tmp_path / "a.parquet", 1_000_000)
    assert path.stat().st_size < 3_000_000, "and it would be 900 GB"
    said = call_bounded(lambda: complaint(path), seconds=60, megabytes=1500)
    assert "row group 0 becomes more than 268,435,456 bytes when it is read" in said
    for kind in (HubDataset, HubStream):
        with pytest.raises(DataError, match="is refused"):
            kind(DatasetConfig(name=str(path)), "train")
        with pytest.raises(DataError, match="is refused"):
            kind(DatasetConfig(name=str(tmp_path)), "train")


def test_many_row_groups_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repeated(tmp_path / "a.parquet", 400, value=b"x" * 10_000, row_group_size=100)
    assert complaint(path) == ""
    monkeypatch.setattr(parquet_sizes, "_LARGEST_GROUP", 1_100_000)
    monkeypatch.setattr(parquet_sizes, "_TIMES", 0)
    assert "row group 1 becomes" in complaint(path)


def test_short_values_may_repeat_as_often_as_they_like(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.parquet", 1_000_000, value=b"a caption that is everywhere")
    assert complaint(path) == ""


def test_a_bound_that_is_too_high_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_sizes, "_LARGEST_GROUP", 1_000_000)
    values = [b"long" * 10_000, *(b"%d" % number for number in range(500))]
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    assert complaint(tmp_path / "a.parquet") == "", "500 times 40 kB, were each as long as the longest"


def test_shared_prefixes_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_sizes, "_LARGEST_GROUP", 10_000_000)
    monkeypatch.setattr(parquet_sizes, "_TIMES", 1)
    values = [b"p" * 100_000 + b"%04d" % number for number in range(1000)]
    table = pa.table({"image": values})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding={"image": "DELTA_BYTE_ARRAY"})
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    assert "row group 0 becomes" in complaint(tmp_path / "a.parquet")


def test_what_is_no_parquet_file_is_for_its_reader_to_judge(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    assert complaint(tmp_path / "a.parquet") == ""
