"""One shard: an Arrow file with one row for each image, memory-mapped for reading.

Columns: position (in the source's split), name, captions, codes (crops x N), and with a text tokenizer text_ids and
text_truncated, one entry for each caption. Unusable items of its range are in the schema's metadata, so that one file
describes its whole range. It is written atomically.
"""

import io
import json
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

_SKIPPED = b"skipped"
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
    columns: dict[str, Any] = {
        "position": pa.array([row.position for row in rows], pa.int64()),
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
    told = [[position, item.name, item.cause] for position, item in sorted(skipped.items())]
    table = table.replace_schema_metadata({_SKIPPED: json.dumps(told)})
    content = io.BytesIO()
    with pa.ipc.new_file(content, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(rows), 1))
    with writing(path, MAKE_THE_REST):
        write_file(path, content.getvalue())


class Shard:
    """A shard on disk. Raises DataError if the file is missing or damaged."""

    def __init__(self, path: Path) -> None:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            self._skipped = {position: (name, cause) for position, name, cause in _told(table)}
            self._columns = {name: table.column(name) for name in table.column_names}
            self.positions: Int64[np.ndarray, "R"] = self._columns["position"].to_numpy()
            self._codes = _numbers(self._columns["codes"].combine_chunks())
            self._text: tuple[Any, Any] | None = None  # ids of all captions, and where each row's begin
            if "text_ids" in self._columns:
                ids = self._columns["text_ids"].combine_chunks()
                self._text = _numbers(ids.values), ids.offsets.to_numpy()
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path} is missing or damaged ({reason}); remove it and encode again") from None

    def __len__(self) -> int:
        return len(self.positions)

    def skipped(self) -> dict[int, UnusableSample]:
        """Returns the unusable items by position."""
        return {position: UnusableSample(*told) for position, told in self._skipped.items()}

    def row(self, position: int) -> Row:
        """Returns the image at a position of the split. Raises UnusableSample if it is unusable."""
        number = self._number(position)
        columns = self._columns
        row = Row(position, columns["name"][number].as_py(), self.captions(position), self._codes[number])
        if self._text is None:
            return row
        ids, starts = self._text
        cut = tuple(columns["text_truncated"][number].as_py())
        return replace(row, text_ids=ids[starts[number] : starts[number + 1]], text_truncated=cut)

    def captions(self, position: int) -> tuple[str, ...]:
        """Returns the captions without the codes. Raises UnusableSample like `row`."""
        return tuple(self._columns["captions"][self._number(position)].as_py())

    def _number(self, position: int) -> int:
        if position in self._skipped:
            raise UnusableSample(*self._skipped[position])
        number = int(np.searchsorted(self.positions, position))
        if number == len(self) or self.positions[number] != position:
            raise IndexError(f"position {position} is not in this shard")
        return number


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
