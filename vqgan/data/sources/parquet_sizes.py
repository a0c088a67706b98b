"""How large a Parquet file becomes when it is read, before it is.

A value that stands once in a dictionary, and a million times as its number in a run, takes a megabyte on the disk and a
terabyte in memory; so does a prefix that a million values share. What the headers do not exclude is measured, value by
value, up to the limit.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqgan.data.source import DataError
from vqgan.system.bounded_file import open_regular

_LARGEST_GROUP = 1 << 33
"""Bytes of a row group, which is read at once: 8 GB."""
_TIMES = 100
"""A file becomes at most so many times as large as it is, and 8 GB."""
_LARGEST_BATCH = 1 << 26
_DICTIONARY_PAGE = 2


def check_sizes(path: Path) -> None:
    """Raises DataError for a file that becomes far larger than it is. What is no Parquet file passes."""
    import pyarrow.parquet

    try:
        with open_regular(path) as content, pyarrow.parquet.ParquetFile(content) as file:
            most = _LARGEST_GROUP + _TIMES * os.fstat(content.fileno()).st_size
            total = 0
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                size = sum(_bound(content, group.column(column)) for column in range(group.num_columns))
                if size > _LARGEST_GROUP or total + size > most:
                    size = _measured(file, number, min(_LARGEST_GROUP, most - total))
                total += size
                if size > _LARGEST_GROUP or total > most:
                    raise DataError(
                        f"data file {str(path)!r} is refused: row group {number} becomes more than "
                        f"{min(_LARGEST_GROUP, most):,} bytes when it is read; write it in smaller row groups"
                    )
    except DataError:
        raise
    except Exception:  # pyarrow raises many kinds; whoever reads the file says what is wrong with it
        return


def _bound(content: Any, column: Any) -> int:
    """More than the values of a column chunk take, by its headers."""
    plain = column.total_uncompressed_size + 8 * column.num_values
    if column.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return int(plain)
    if any(encoding.startswith("DELTA") for encoding in column.encodings):  # values may share a prefix
        return int(plain + column.num_values * column.total_uncompressed_size)
    starts = [column.data_page_offset, *([column.dictionary_page_offset] if column.has_dictionary_page else [])]
    return int(plain + column.num_values * _dictionary_size(content, min(starts)))


def _dictionary_size(content: Any, start: int) -> int:
    """Returns the bytes of the dictionary page at `start`, unpacked; 0 where it is another page."""
    content.seek(start)
    numbers = _first_numbers(content.read(32))
    return next(numbers) if next(numbers) == _DICTIONARY_PAGE else 0


def _first_numbers(header: bytes) -> Iterator[int]:
    """Yields the first fields of a page header, in Thrift's compact protocol: each a byte and a zigzag number."""
    at = 0
    while at < len(header):
        at += 1
        number = shift = 0
        while True:
            number |= (header[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not header[at - 1] & 0x80:
                break
        yield number >> 1


def _measured(file: Any, group: int, limit: int) -> int:
    """Returns the bytes of a row group's values, counted up to a little more than `limit`."""
    metadata = file.metadata.row_group(group)
    # No batch is larger than this, as no value is larger than its column chunk.
    at_once = max(1, min(1024, _LARGEST_BATCH // max(1, metadata.total_byte_size)))
    total = 0
    for batch in file.iter_batches(batch_size=at_once, row_groups=[group], use_threads=False):
        total += batch.nbytes
        if total > limit:
            break
    return total
