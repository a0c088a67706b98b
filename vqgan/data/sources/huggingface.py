"""Anything that the library `datasets` opens: Hub data sets, Parquet / Arrow / JSON / CSV / tar files, saved folders.

Two classes for one DatasetConfig: `HubDataset` has an index and a length, `HubStream` reads from front to back, in
partitions, without a download (`streaming: true`). Images stay encoded until they are asked for and are decoded by
`decode_image`, so a broken one costs itself and not the run. `datasets` is imported on use: it takes a second.
"""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqgan.data.captions import read_captions
from vqgan.data.images.decode import decode_image, parse_color
from vqgan.data.source import DataError, Sample, Split, UnusableSample
from vqgan.data.sources.huggingface_files import DatasetConfig, one_line, open_rows, row_files
from vqgan.data.sources.parquet import LOST_COLUMN
from vqgan.data.split import items_of_split, position_scores
from vqgan.data.stream import EncodedSample, PartitionReader, broken_sample, infinite, interleave, shards_of_partition

_SHUFFLE_BUFFER = 256
"""Encoded images that each partition of a stream is shuffled in: some 25 MB."""


class HubDataset:
    """The `dataset` source with an index. Raises DataError when it cannot be opened or lacks a column."""

    def __init__(
        self, config: DatasetConfig, split: Split, *, require_captions: bool = False, min_side: int | None = None
    ) -> None:
        rows = open_rows(config, split, streaming=False)
        self._reader = _RowReader(config, rows.features, require_captions, min_side)
        self._rows = self._reader.leave_encoded(rows)
        self._captions = self._reader.captions_alone(rows)
        self._name = config.name
        self._numbers = np.arange(len(rows))
        if config.val_split is None:
            # Scores by position from a fixed seed: more rows at the end leave the earlier ones on their side.
            self._numbers = items_of_split(position_scores(len(rows)), config.val_fraction, split)
        if not len(self._numbers):
            raise DataError(f"data set {config.name!r}: no rows for the {split} split of {len(rows)} rows")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self._numbers[index])
        name = f"{self._name} row {number}"
        return self._reader.sample(_row(self._rows, number, name), name)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions that training may show, without reading the image; a blank one counts as missing."""
        number = int(self._numbers[index])
        name = f"{self._name} row {number}"
        row = {} if self._captions is None else _row(self._captions, number, name)
        return self._reader.captions(row, name)


def _row(rows: Any, number: int, name: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = rows[number]
        return row
    except Exception as error:  # text that is not UTF-8, a file that was cut short since it was opened
        raise UnusableSample(name, f"its row cannot be read: {one_line(error)}") from None


class HubStream:
    """The `dataset` source from front to back. Raises DataError when it cannot be opened or lacks a column."""

    def __init__(
        self, config: DatasetConfig, split: Split, *, require_captions: bool = False, min_side: int | None = None
    ) -> None:
        rows = open_rows(config, split, streaming=True)
        features = rows.features
        if features is None:  # a format without a schema: read the first row
            features = dict.fromkeys(next(iter(rows.take(1)), {}))
        self._reader = _RowReader(config, features, require_captions, min_side)
        self._rows = self._reader.leave_encoded(rows)
        self._captions = self._reader.captions_alone(rows)
        self._is_local = Path(config.name).expanduser().exists()
        self._name = config.name
        # The validation split is the front of the first file. A fraction of all rows would need every file's length.
        self._val = config.val_count if config.val_split is None else 0
        self._only_front = split == "val" and config.val_split is None

    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:
        """Returns the items of one partition from number `start` on, as Stream says. The files are dealt among the
        partitions."""
        return infinite(_HubPartition(self, partition, partitions), partition, seed, start, _SHUFFLE_BUFFER)

    def iterate(self) -> Iterator[EncodedSample]:
        """Returns every row of the split once, file after file."""
        if self._only_front:
            return islice(self.file(0), self._val)
        return chain.from_iterable(map(self._of_split, range(self.files)))

    def spread(self) -> Iterator[EncodedSample]:
        """Returns every row of the split once, from several files in turn."""
        if self._only_front:
            return self.iterate()
        return interleave([partial(self._of_split, number) for number in range(self.files)])

    def _of_split(self, file: int) -> Iterator[EncodedSample]:
        return islice(self.file(file), self.first(file), None)

    @property
    def parts(self) -> int:
        """Returns the files of a split; for a validation split at the front only the first."""
        return 1 if self._only_front else self.files

    def is_local(self, part: int) -> bool:  # noqa: ARG002
        """Returns whether files can be read to their ends in little time."""
        return self._is_local

    def captions_of(self, part: int) -> Iterator[EncodedSample]:
        """Returns the rows of a file, for their captions alone; of Parquet no other column is read."""
        if self._captions is None:
            return iter(())
        alone = copy(self)
        alone._rows = self._captions
        return islice(alone.file(part), self.first(part), self._val if self._only_front else None)

    @property
    def files(self) -> int:
        """Parts that `datasets` can read separately: the data set's files."""
        return int(self._rows.num_shards)

    def first(self, file: int) -> int:
        """Returns the first row of a file that belongs to the training split."""
        return self._val if file == 0 and not self._only_front else 0

    def file(self, number: int) -> Iterator[EncodedSample]:
        """Yields the rows of a file. What cannot be read costs its own row group (Parquet), or else the rest of the
        file."""
        name = self._name if self.files == 1 else f"{self._name} file {number}"
        file = self._rows.shard(self.files, number)
        read = 0
        try:
            for row in _plain_rows(file):
                yield self._undecoded(row, f"{name} row {read}")
                read += 1
            return
        except Exception as error:  # every format raises its own kinds
            broken = error
        pieces, count = [file], 1
        with suppress(Exception):
            regrouped = file.reshard()  # Parquet: one shard a row group
            count = int(regrouped.num_shards)
            pieces = [regrouped.shard(count, piece) for piece in range(count)]
        if count == 1:
            yield broken_sample(f"{name} from row {read} on", f"the rest of the file is lost: {one_line(broken)}")
            return
        yield from self._rows_of_pieces(pieces, name, read)

    def _rows_of_pieces(self, pieces: list[Any], name: str, already_read: int) -> Iterator[EncodedSample]:
        """Yields what is left of a broken file, row group by row group."""
        row_number = 0
        for number, piece in enumerate(pieces):
            try:
                for row in _plain_rows(piece):
                    row_number += 1
                    if row_number > already_read:
                        yield self._undecoded(row, f"{name} row {row_number - 1}")
            except Exception as error:
                yield broken_sample(f"{name} row group {number}", f"its rows are lost: {one_line(error)}")

    def _undecoded(self, row: dict[str, Any], name: str) -> EncodedSample:
        return EncodedSample(name, partial(self._reader.sample, row, name), partial(self._reader.captions, row, name))


class _HubPartition(PartitionReader):
    """One partition's files, or every L-th row of a file."""

    def __init__(self, stream: HubStream, partition: int, partitions: int) -> None:
        self._stream = stream
        self._parts = shards_of_partition(stream.files, partition, partitions)

    def epoch(self, order: np.random.Generator, skip: int) -> tuple[int, Iterator[EncodedSample]]:  # noqa: ARG002
        """All rows: none can be left out without reading it."""
        parts = [self._parts[index] for index in order.permutation(len(self._parts))]
        return 0, chain.from_iterable(
            islice(self._stream.file(file), self._stream.first(file) + first, None, step) for file, first, step in parts
        )


class _RowReader:
    """From a row to a Sample, once the columns are known to exist."""

    def __init__(self, config: DatasetConfig, features: Any, require_captions: bool, min_side: int | None) -> None:
        if require_captions and config.caption_column is None:
            raise DataError(
                f"data set {config.name!r}: this run needs captions and caption_column is null; "
                f"set it to one of: {', '.join(features)}"
            )
        for field in ("image_column", "caption_column"):
            column = getattr(config, field)
            if column is not None and column not in features:
                near = difflib.get_close_matches(column, features, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else f"; set {field}"
                absent = " (null: no captions)" if field == "caption_column" and not require_captions else ""
                raise DataError(
                    f"data set {config.name!r} has no column {column!r}, it has: {', '.join(features)}{hint}{absent}"
                )
        self._config = config
        self._files = row_files(config)
        self._background = parse_color(config.background)
        self._at_least = min_side
        self._require_captions = require_captions
        self._label_names = getattr(features[config.caption_column], "names", None) if config.caption_column else None
        kind = features[config.image_column]
        if not _may_hold_images(kind):
            raise DataError(
                f"data set {config.name!r}: column {config.image_column!r} holds {one_line(kind)}, not images; "
                f"set image_column to one of: {', '.join(features)}"
            )
        self._has_schema = kind is not None

    def leave_encoded(self, rows: Any) -> Any:
        """Returns the same rows, of which only the two columns are read and no image is decoded."""
        import datasets

        rows = rows.select_columns([self._config.image_column, *self._caption_columns(rows)])
        return rows.cast_column(self._config.image_column, datasets.Image(decode=False)) if self._has_schema else rows

    def captions_alone(self, rows: Any) -> Any:
        """Returns the rows without their images; None where no caption column is named."""
        return rows.select_columns(self._caption_columns(rows)) if self._config.caption_column is not None else None

    def _caption_columns(self, rows: Any) -> list[str]:
        lost = [LOST_COLUMN] if LOST_COLUMN in (rows.column_names or ()) else []
        return lost if self._config.caption_column is None else [self._config.caption_column, *lost]

    def sample(self, row: dict[str, Any], name: str) -> Sample:
        if cause := row.get(LOST_COLUMN):
            raise UnusableSample(name, cause)
        image = self._image(row[self._config.image_column], name)
        captions = self.captions(row, name)
        return Sample(image, captions[0] if captions else None, name, captions)

    def _image(self, value: Any, name: str) -> Image.Image:
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if value is None and path:
            value = path
        if isinstance(value, str):
            value = self._files.read(value, name)
        if isinstance(value, bytes | Image.Image):
            return decode_image(value, name, self._background, min_side=self._at_least)
        raise UnusableSample(name, "no image" if value is None else f"a {type(value).__name__} is not an image")

    def captions(self, row: dict[str, Any], name: str) -> tuple[str, ...]:
        """Returns the captions that training may show of a row."""
        if cause := row.get(LOST_COLUMN):
            raise UnusableSample(name, cause)
        value = row[self._config.caption_column] if self._config.caption_column is not None else None
        if self._label_names is not None and isinstance(value, int):
            value = self._label_names[value] if 0 <= value < len(self._label_names) else None  # -1: no label
        return read_captions(value, self._config.captions, name, required=self._require_captions)


def _may_hold_images(kind: Any) -> bool:
    """Returns whether a column's type is that of images, encoded bytes or paths; None, an unknown type, may be
    anything."""
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("string", "large_string", "binary", "large_binary")
    return kind is None or isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)


def _plain_rows(rows: Any) -> Iterator[dict[str, Any]]:
    # Not by iterating over `rows`: in a DataLoader's worker that would leave out what other workers should read.
    for batch in rows.iter(batch_size=1):
        yield {column: values[0] for column, values in batch.items()}
