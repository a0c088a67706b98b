"""Local Parquet files of which a part cannot be read: the rest of them, and what is lost row by row.

`datasets` refuses a file for one broken row group. Here its rows stay, each with the cause in a column of its own, so
that every other row keeps its number and the loader names and counts those that are lost.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOST_COLUMN = "_why_it_is_lost"
"""Null in a row that could be read."""


def readable_rows(files: Sequence[str]) -> Any:
    """Returns the rows of Parquet files as a `datasets.Dataset`, converted once and cached until a file changes.

    Raises ValueError where no file has a schema that can be read.
    """
    import datasets
    import pyarrow.parquet

    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
        except Exception:  # pyarrow raises many kinds; another file may be readable
            continue
        features = datasets.Features.from_arrow_schema(schema)
        features[LOST_COLUMN] = datasets.Value("string")
        # Tuples: lists would be data to divide among processes. Size and time, so that a mended file is read anew.
        stamps = tuple((file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files)
        return datasets.Dataset.from_generator(
            _rows, features=features, gen_kwargs={"stamps": stamps, "columns": tuple(schema.names)}
        )
    raise ValueError("none of its files is a Parquet file")


def _rows(stamps: tuple[tuple[str, int, int], ...], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    nothing = dict.fromkeys(columns)
    for path, _, _ in stamps:
        name = Path(path).name
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except Exception as error:
            yield {**nothing, LOST_COLUMN: f"{name} cannot be opened: {_one_line(error)}"}
            continue
        with file:
            for group in range(file.num_row_groups):
                try:
                    rows = file.read_row_group(group, columns=list(columns)).to_pylist()
                except Exception as error:
                    cause = f"row group {group} of {name} cannot be read: {_one_line(error)}"
                    rows = [{LOST_COLUMN: cause}] * file.metadata.row_group(group).num_rows
                for row in rows:
                    yield {**nothing, LOST_COLUMN: None, **row}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
