"""One shard: an Arrow file with one row for each image, memory-mapped for reading.

Columns: position (in the source's split), name, captions, codes (crops x N), and with a text tokenizer text_ids and
text_truncated, one entry for each caption. Unusable items of its range are in the schema's metadata, so that one file
describes its whole range. It is written atomically.

Column crc32 has a checksum of each row, so that reading one row checks that row alone, and the schema's metadata one of
what finds the rows (positions, rows' checksums, unusable items). Shards of earlier versions have neither.
"""

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, Integer

from parti.code_cache.manifest import MAKE_THE_REST
from vqgan.data.source import DataError, UnusableSample
from vqgan.system.atomic_files import write_file, writing

_SKIPPED, _INDEX_CRC, _ROW_CRC = b"skipped", b"index_crc32", "crc32"
_READING_FAILS = (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError, MemoryError)
"""What reading of a damaged file raises: Arrow's own, and what other types and values than ours lead to."""
_INDEX_TYPES = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True)
class Row:
    """One image: its position, its name and its tokens."""

    position: int
    name: str
    captions: tuple[str, ...]
    codes: Integer[np.ndarray, "K N"]
    text_ids: Integer[np.ndarray, "C T"] | None = None
    text_truncated: tuple[bool, ...] = ()

    def crc32(self) -> int:
        """Returns a checksum of everything in the row, types and shapes included."""
        arrays = [self.codes] if self.text_ids is None else [self.codes, self.text_ids]
        kinds = [(array.dtype.str, array.shape) for array in arrays]
        words = [self.position, self.name, self.captions, self.text_truncated, kinds]
        checksum = zlib.crc32(json.dumps(words).encode())
        for array in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return checksum


def smallest_type(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned integers that hold [0, vocab_size): one byte to 256, two to 65,536, else four."""
    return next(np.dtype(kind) for kind in _INDEX_TYPES if vocab_size - 1 <= np.iinfo(kind).max)


@dataclass(frozen=True)
class ShardTypes:
    """Sizes and integer types that all shards of a split share; text_length None: no ids."""

    views: int
    codes: int
    code_type: np.dtype
    text_length: int | None
    text_type: np.dtype


def write_shard(path: Path, rows: Sequence[Row], skipped: Mapping[int, UnusableSample], types: ShardTypes) -> None:
    """Writes a shard atomically."""
    rows = [_as_stored(row, types) for row in rows]
    positions = np.array([row.position for row in rows], np.int64)
    checksums = np.array([row.crc32() for row in rows], np.uint32)
    columns: dict[str, Any] = {
        "position": pa.array(positions),
        _ROW_CRC: pa.array(checksums),
        "name": pa.array([row.name for row in rows], pa.string()),
        "captions": pa.array([list(row.captions) for row in rows], pa.list_(pa.string())),
        "codes": _fixed([row.codes for row in rows], (types.views, types.codes), types.code_type),
    }
    if types.text_length is not None:
        lines = [line for row in rows if row.text_ids is not None for line in row.text_ids]
        ids = _fixed(lines, (types.text_length,), types.text_type)
        columns["text_ids"] = pa.ListArray.from_arrays(columns["captions"].offsets, ids)
        columns["text_truncated"] = pa.array([list(row.text_truncated) for row in rows], pa.list_(pa.bool_()))
    table = pa.table(columns)
    told = json.dumps([[position, item.name, item.cause] for position, item in sorted(skipped.items())]).encode()
    index_crc = _index_crc(positions, checksums, told)
    table = table.replace_schema_metadata({_SKIPPED: told, _INDEX_CRC: str(index_crc)})
    content = io.BytesIO()
    with pa.ipc.new_file(content, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(rows), 1))
    with writing(path, MAKE_THE_REST):
        write_file(path, content.getvalue())


class Shard:
    """A shard on disk. Raises DataError if the file is missing or damaged, also when a damaged row is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate()
            self._skipped = {position: (name, cause) for position, name, cause in _told(table)}
            self._columns = {name: table.column(name) for name in table.column_names}
            self.positions: Int64[np.ndarray, "R"] = self._columns["position"].to_numpy()
            self._codes = _numbers(self._columns["codes"].combine_chunks())
            self._text: tuple[Any, Any] | None = None  # ids of all captions, and where each row's begin
            if "text_ids" in self._columns:
                ids = self._columns["text_ids"].combine_chunks()
                self._text = _numbers(ids.values), ids.offsets.to_numpy()
            self._checksums = self._checked_index(table)
        except _READING_FAILS as error:
            raise self._damaged(" ".join(str(error).split())[:200]) from None

    def __len__(self) -> int:
        return len(self.positions)

    def skipped(self) -> dict[int, UnusableSample]:
        """Returns the unusable items by position."""
        return {position: UnusableSample(*told) for position, told in self._skipped.items()}

    def row(self, position: int) -> Row:
        """Returns the image at a position of the split. Raises UnusableSample if it is unusable."""
        number = self._number(position)
        try:
            row = self._read(position, number)
            intact = self._checksums is None or row.crc32() == self._checksums[number]
        except _READING_FAILS:
            intact = False
        if not intact:
            raise self._damaged(f"the row of position {position} does not have its checksum")
        return row

    def captions(self, position: int) -> tuple[str, ...]:
        """Returns the captions of a position. Raises UnusableSample like `row`."""
        return self.row(position).captions

    def _read(self, position: int, number: int) -> Row:
        columns = self._columns
        captions = tuple(columns["captions"][number].as_py())
        row = Row(position, columns["name"][number].as_py(), captions, self._codes[number])
        if self._text is None:
            return row
        ids, starts = self._text
        cut = tuple(columns["text_truncated"][number].as_py())
        return replace(row, text_ids=ids[starts[number] : starts[number + 1]], text_truncated=cut)

    def _checked_index(self, table: pa.Table) -> Integer[np.ndarray, "R"] | None:
        """Returns the rows' checksums; None in a shard of an earlier version. Raises ValueError if the index is
        damaged."""
        metadata = table.schema.metadata or {}
        if _INDEX_CRC not in metadata and _ROW_CRC not in self._columns:
            return None
        checksums = self._columns[_ROW_CRC].to_numpy()
        if int(metadata[_INDEX_CRC]) != _index_crc(self.positions, checksums, metadata[_SKIPPED]):
            raise ValueError("the index does not have its checksum")
        for name in self._columns:
            _check_offsets(self._columns[name].combine_chunks())
        return checksums

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self._path} is missing or damaged ({reason}); remove it and encode again")

    def _number(self, position: int) -> int:
        if position in self._skipped:
            raise UnusableSample(*self._skipped[position])
        number = int(np.searchsorted(self.positions, position))
        if number == len(self) or self.positions[number] != position:
            raise self._damaged(f"position {position} is not in it")
        return number


def _as_stored(row: Row, types: ShardTypes) -> Row:
    """Returns the row as it is read again."""
    codes = np.asarray(row.codes).astype(types.code_type)
    if types.text_length is None or row.text_ids is None:
        return replace(row, codes=codes, text_ids=None, text_truncated=())
    return replace(row, codes=codes, text_ids=np.asarray(row.text_ids).astype(types.text_type))


def _index_crc(positions: Integer[np.ndarray, "R"], checksums: Integer[np.ndarray, "R"], skipped: bytes) -> int:
    return zlib.crc32(skipped, zlib.crc32(checksums.tobytes(), zlib.crc32(positions.tobytes())))


def _check_offsets(lists: Any) -> None:
    """Raises ValueError if entries of a column lie outside its values, where Arrow would read other memory."""
    while pa.types.is_list(lists.type) or pa.types.is_string(lists.type):
        is_text = pa.types.is_string(lists.type)
        buffers = lists.buffers()
        offsets = np.frombuffer(buffers[1], np.int32)[: len(lists) + 1] if len(lists) else np.zeros(1, np.int32)
        size = (buffers[2].size if buffers[2] else 0) if is_text else len(lists.values)
        if offsets[0] < 0 or offsets[-1] > size or (np.diff(offsets) < 0).any():
            raise ValueError("entries lie outside of their column")
        if is_text:
            return
        lists = lists.values


def _fixed(values: Sequence[Any], shape: tuple[int, ...], kind: np.dtype) -> pa.Array:
    """Returns a column of fixed-size lists nested by `shape`, from the contiguous numbers of all rows."""
    stacked = np.stack(values).astype(kind) if values else np.zeros((0, *shape), kind)
    column: Any = pa.array(stacked.reshape(-1))
    for size in reversed(shape):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _numbers(lists: Any) -> Integer[np.ndarray, "R ..."]:
    """Returns nested fixed-size lists as one array over the file's memory."""
    sizes = []
    while pa.types.is_fixed_size_list(lists.type):
        sizes.append(lists.type.list_size)
        lists = lists.flatten()
    return lists.to_numpy(zero_copy_only=True).reshape(-1, *sizes)


def _told(table: pa.Table) -> list[tuple[int, str, str]]:
    told = json.loads((table.schema.metadata or {})[_SKIPPED])
    return [(position, name, cause) for position, name, cause in told]
