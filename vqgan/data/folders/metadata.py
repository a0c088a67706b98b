"""`metadata.csv` and `metadata.jsonl`: which files belong to a data set, each with its caption.

The convention of Hugging Face's imagefolder: columns `file_name` and `text`, in JSON a list of several texts as well.
Nothing that a row says is lost in silence: a quotation mark that swallows the rows behind it is an error, cells beyond
the header are counted.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vqgan.data.folders.listing import EXTENSIONS, ending
from vqgan.data.source import DataError, printable

MAX_LINE = 16_000_000
"""Characters of a line or a CSV cell; a longer one is no caption, and is not read into memory."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the file that it names, as it is written, and what it gives as its caption."""

    file_name: str
    text: Any


@dataclass(frozen=True)
class Table:
    """All rows of a metadata file."""

    rows: list[Row]
    has_text: bool
    """Whether there is a column `text`."""
    surplus: list[str]
    """`line 7` of each row with more cells than the header, whose caption probably ends at a comma."""


def read_metadata(path: Path, *, require_captions: bool) -> Table:
    """Returns the rows of a metadata file. Raises DataError when it is not what its ending says, or lacks a column."""
    surplus: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _Lines(file, path)
            rows = list(_csv_rows(lines, surplus) if path.suffix.lower() == ".csv" else _json_rows(lines))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in ("file_name", "text") if require_captions else ("file_name",):
        if rows and column not in columns:
            found = printable(", ".join(str(name) for name in columns))
            raise DataError(f"{path} has no column {column!r}, it has: {found}; rename the one that is meant")
    return Table([Row(str(row.get("file_name") or ""), row.get("text")) for row in rows], "text" in columns, surplus)


class _Lines:
    """The lines of a file, those since the last `forget` kept. Raises DataError for one above MAX_LINE."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self.path = path
        self.number = 0
        self.kept: list[str] = []

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE + 1):
            self.number += 1
            if len(line) > MAX_LINE:
                raise DataError(f"{self.path} line {self.number} is longer than {MAX_LINE:,} characters: no such list")
            self.kept.append(line)
            yield line

    def forget(self) -> list[str]:
        """Returns the stored lines and clears them."""
        kept, self.kept = self.kept, []
        return kept


def _csv_rows(lines: _Lines, surplus: list[str]) -> Iterator[dict[str, Any]]:
    try:
        with _large_cells():
            reader = csv.reader(lines)
            header = next((row for row in reader if row), [])
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"{lines.path} has two columns {printable(twice)!r}: rename the one that is not meant")
            lines.forget()
            for row in reader:
                own = lines.forget()
                first = lines.number - len(own) + 1
                if len(own) > 1:
                    _check_quotes(own, header, first, lines.path)
                if any(cell.strip() for cell in row[len(header) :]):
                    surplus.append(f"line {first}")
                if row:
                    yield dict.fromkeys(header) | dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{lines.path} line {lines.number} is not valid CSV: {error}") from None


def _check_quotes(own: list[str], header: list[str], first: int, path: Path) -> None:
    """Raises DataError where a row of several lines is one only for a quotation mark that nobody closed."""
    try:
        list(csv.reader(own, strict=True))
        swallowed = next((number for number, line in enumerate(own[1:], first + 1) if _is_row(line, header)), None)
    except csv.Error:
        swallowed = first + 1
    if swallowed is not None:
        raise DataError(
            f"{path} line {first}: a quotation mark that opens here swallows line {swallowed} and what follows, to "
            f'line {first + len(own) - 1}; close it, or write "" for a quotation mark inside of a quoted text'
        )


def _is_row(line: str, header: list[str]) -> bool:
    """Returns whether a line inside of a text looks like a row of its own: an image's name in its place among
    others."""
    cells = next(csv.reader([line]), [])
    if len(cells) < 2 or "file_name" not in header:
        return False
    place = header.index("file_name")
    candidates = [cells[-1] if place == len(header) - 1 else "", *cells[place : place + 1]]
    return any(ending(cell.strip()) in EXTENSIONS for cell in candidates)


@contextmanager
def _large_cells() -> Iterator[None]:
    """Cells of a whole line's length; the limit is one of the process, so it is put back."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_rows(lines: _Lines) -> Iterator[dict[str, Any]]:
    for line in lines:
        lines.forget()
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{lines.path} line {lines.number} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{lines.path} line {lines.number} is not an object with file_name and text")
        yield row
