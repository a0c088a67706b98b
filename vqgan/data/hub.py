"""Anything that the library `datasets` opens: Hub data sets, Parquet / Arrow / JSON / CSV / tar files, saved folders.

Two classes for one DatasetConfig: `HubDataset` has an index and a length, `HubStream` reads from front to back without
a download (`streaming: true`). Pictures stay encoded until they are asked for and are decoded by `decode_image`, so a
broken one costs itself and not the run. `datasets` is imported on use: it takes a second.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.utils.data
from PIL import Image
from pydantic import Field

from vqgan.config import Config
from vqgan.data.images import Colour, decode_image, parse_colour
from vqgan.data.source import DataError, Sample, Split, UnusableSample
from vqgan.data.split import items_of_split

FILE_BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tar": "webdataset",
}
"""Ending of a local file -> what `datasets` reads it with."""
_SHUFFLE_BUFFER = 1000
"""Encoded pictures that a stream is shuffled in: some 100 MB."""


class DatasetConfig(Config):
    """A data set of the Hugging Face Hub, or a local file or folder that `datasets` opens."""

    kind: Literal["dataset"] = "dataset"
    """Whatever `datasets.load_dataset` opens."""
    name: str
    """Hub name (owner/name), or a local Parquet, Arrow, JSON, CSV or tar file, or a folder of them."""
    config_name: str | None = None
    """Configuration (subset) of the data set, where it has several."""
    split: str = "train"
    """Split to train on."""
    heldout_split: str | None = None
    """Split to hold out, e.g. validation; null: a part of `split`."""
    image_column: str = "image"
    """Column with the pictures."""
    caption_column: str | None = "text"
    """Column with the captions (text, a list of texts of which the first counts, or class labels); null: none."""
    streaming: bool = False
    """Read from front to back without downloading first."""
    heldout_share: float = Field(0.05, gt=0, lt=1)
    """Without heldout_split: share of the rows to hold out, chosen by row number."""
    heldout_count: int = Field(1000, gt=0)
    """Streaming without heldout_split: how many rows at the front are held out. The files are then read in their own
    order and shuffled only within a buffer; with heldout_split the order of the files is shuffled too."""
    background: Colour = "#ffffff"
    """What shows through transparent pictures."""


class HubDataset:
    """The `dataset` source with an index. Raises DataError when it cannot be opened or lacks a column."""

    def __init__(self, config: DatasetConfig, split: Split, *, require_captions: bool = False) -> None:
        rows = _open(config, split, streaming=False)
        self._reader = _RowReader(config, rows.features, require_captions)
        self._rows = self._reader.leave_encoded(rows)
        self._captions = rows.select_columns([config.caption_column]) if config.caption_column is not None else None
        self._name = config.name
        self._numbers = np.arange(len(rows))
        if config.heldout_split is None:
            # Scores by position from a fixed seed: more rows at the end leave the earlier ones on their side.
            scores = np.random.default_rng(0).random(len(rows))
            self._numbers = items_of_split(scores, config.heldout_share, split)
        if not len(self._numbers):
            raise DataError(f"data set {config.name!r}: no rows for the {split} split of {len(rows)} rows")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self._numbers[index])
        return self._reader.sample(self._rows[number], f"{self._name} row {number}")

    def caption(self, index: int) -> str | None:
        """The caption alone, without reading the picture; a blank one counts as missing."""
        number = int(self._numbers[index])
        row = {} if self._captions is None else self._captions[number]
        return self._reader.caption(row, f"{self._name} row {number}")


class HubStream:
    """The `dataset` source from front to back. Raises DataError when it cannot be opened or lacks a column."""

    def __init__(self, config: DatasetConfig, split: Split, *, require_captions: bool = False) -> None:
        from datasets.distributed import split_dataset_by_node

        rows = _open(config, split, streaming=True)
        features = rows.features
        if features is None:  # a format without a schema: the first row tells
            features = dict.fromkeys(next(iter(rows.take(1)), {}))
        self._reader = _RowReader(config, features, require_captions)
        rows = self._reader.leave_encoded(rows)
        if config.heldout_split is None:
            # As one node of one, `datasets` does not divide the number of rows to skip or take among the workers of a
            # DataLoader, each of which reads its own files: so that no worker trains on a held-out row.
            rows = split_dataset_by_node(rows, rank=0, world_size=1)
            rows = rows.take(config.heldout_count) if split == "heldout" else rows.skip(config.heldout_count)
        self._rows = rows
        self._shuffled = split == "train"
        self._one_reader = split == "heldout" and config.heldout_split is None
        self._name = config.name

    def samples(self, epoch: int, seed: int) -> Iterator[Sample | UnusableSample]:
        """One pass. The training split is shuffled as (seed, epoch) say; the held-out split keeps its order.

        The workers of a DataLoader read the data set's files in turns, each row once. An unusable row comes as an
        UnusableSample value, not as an exception: that would end the iterator.
        """
        worker = torch.utils.data.get_worker_info()
        if self._one_reader and worker is not None and worker.num_workers > 1:
            raise DataError(
                f"data set {self._name!r}: {worker.num_workers} workers would each read other held-out rows, and some "
                "that are trained on; use one worker or none for the held-out split, or set heldout_split"
            )
        rows = self._rows
        if self._shuffled:
            order = int(np.random.default_rng((seed, epoch)).integers(2**31))
            rows = rows.shuffle(seed=order, buffer_size=_SHUFFLE_BUFFER)
        for position, row in enumerate(rows):
            try:
                yield self._reader.sample(row, f"{self._name} epoch {epoch} item {position}")
            except UnusableSample as unusable:
                yield unusable


class _RowReader:
    """From a row to a Sample, once the columns are known to exist."""

    def __init__(self, config: DatasetConfig, features: Any, require_captions: bool) -> None:
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
        self._background = parse_colour(config.background)
        self._require_captions = require_captions
        self._label_names = getattr(features[config.caption_column], "names", None) if config.caption_column else None
        kind = features[config.image_column]
        if not _may_hold_pictures(kind):
            raise DataError(
                f"data set {config.name!r}: column {config.image_column!r} holds {_one_line(kind)}, not pictures; "
                f"set image_column to one of: {', '.join(features)}"
            )
        self._has_schema = kind is not None

    def leave_encoded(self, rows: Any) -> Any:
        """The same rows, of which only the two columns are read and no picture is decoded."""
        import datasets

        columns = [column for column in (self._config.image_column, self._config.caption_column) if column is not None]
        rows = rows.select_columns(columns)
        return rows.cast_column(self._config.image_column, datasets.Image(decode=False)) if self._has_schema else rows

    def sample(self, row: dict[str, Any], name: str) -> Sample:
        picture = self._picture(row[self._config.image_column], name)
        return Sample(picture, self.caption(row, name), name)

    def _picture(self, value: Any, name: str) -> Image.Image:
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if value is None and path:
            value = path
        if isinstance(value, str):
            value = _read(value, name) if "://" in value else Path(value)
        if isinstance(value, bytes | Path | Image.Image):
            return decode_image(value, name, self._background)
        raise UnusableSample(name, "no picture" if value is None else f"a {type(value).__name__} is not a picture")

    def caption(self, row: dict[str, Any], name: str) -> str | None:
        """Whitespace collapsed; None where there is no caption or a blank one."""
        value = row[self._config.caption_column] if self._config.caption_column is not None else None
        if self._label_names is not None and isinstance(value, int):
            value = self._label_names[value] if 0 <= value < len(self._label_names) else None  # -1: no label
        if isinstance(value, list):
            value = next((text for text in value if isinstance(text, str) and text.strip()), None)
        if value is not None and not isinstance(value, str):
            raise UnusableSample(name, f"its caption is {value!r:.60}, not text")
        caption = " ".join(value.split()) if value else None
        if not caption and self._require_captions:
            raise UnusableSample(name, "no caption")
        return caption or None


def _open(config: DatasetConfig, split: Split, *, streaming: bool) -> Any:
    """The rows of a split, before anything is held out."""
    import datasets

    wanted = config.heldout_split if split == "heldout" and config.heldout_split is not None else config.split
    path = Path(config.name).expanduser()
    builder = FILE_BUILDERS.get(path.suffix.lower())
    looks_local = builder is not None or config.name.startswith(("/", "./", "../", "~"))
    if looks_local and not path.exists():
        raise DataError(f"data file or folder {config.name!r} does not exist: check name")
    try:
        if any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):  # written by save_to_disk
            rows = _saved_split(datasets.load_from_disk(str(path)), config, wanted)
            return rows.to_iterable_dataset() if streaming else rows
        if path.is_file():
            if builder is None:
                raise DataError(f"cannot tell what {config.name!r} is: expected {', '.join(FILE_BUILDERS)}")
            return datasets.load_dataset(builder, data_files=str(path), split=wanted, streaming=streaming)
        name = str(path) if path.is_dir() else config.name
        return datasets.load_dataset(name, config.config_name, split=wanted, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # datasets, huggingface_hub, pyarrow and the network each raise their own kinds
        raise DataError(
            f"data set {config.name!r} (config {config.config_name}, split {wanted}) cannot be opened: "
            f"{_one_line(error)}; check the name, and the network if it is on the Hub"
        ) from None


def _saved_split(saved: Any, config: DatasetConfig, wanted: str) -> Any:
    """One split of what `save_to_disk` wrote: a dictionary of splits, or a data set that has none."""
    if not isinstance(saved, dict):
        if config.heldout_split is not None:
            raise DataError(f"data set {config.name!r} was saved without splits: set heldout_split to null")
        return saved
    if wanted not in saved:
        raise DataError(f"data set {config.name!r} has no split {wanted!r}, it has: {', '.join(saved)}")
    return saved[wanted]


def _read(address: str, name: str) -> bytes:
    """The bytes behind an address such as hf://datasets/owner/name/a.png, as streams of picture folders have it."""
    import fsspec  # type: ignore[import-untyped]

    try:
        with fsspec.open(address, "rb") as file:
            return file.read()
    except Exception as error:  # every protocol raises its own kinds
        raise UnusableSample(name, f"cannot be read: {_one_line(error)}") from None


def _may_hold_pictures(kind: Any) -> bool:
    """Whether a column's type is that of pictures, encoded bytes or paths; None, an unknown type, may be anything."""
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("string", "large_string", "binary", "large_binary")
    return kind is None or isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)


def _one_line(error: Any) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
