"""Opening what the library `datasets` opens: which files a name stands for, and the rows of one split of it.

`datasets` is imported on use: it takes a second.
"""

import glob
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vqgan.config.schema import Config
from vqgan.data.captions import CaptionChoice
from vqgan.data.folders.row_files import RowFiles
from vqgan.data.images.decode import Color
from vqgan.data.shards.remote import LocalFile, RemoteError
from vqgan.data.shards.tar import BrokenTarError, HostileTarError, members
from vqgan.data.source import DataError, Split
from vqgan.data.sources.parquet import readable_rows
from vqgan.data.sources.parquet_sizes import check_sizes

FILE_BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tar": "webdataset",
}
"""Ending of a local file -> what `datasets` reads it with."""
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z")


class DatasetConfig(
    Config,
    may_change=(
        "kind",
        "name",
        "config_name",
        "split",
        "val_split",
        "image_column",
        "caption_column",
        "captions",
        "streaming",
        "val_fraction",
        "val_count",
        "background",
    ),
):
    """A data set of the Hugging Face Hub, or a local file or folder that `datasets` opens."""

    kind: Literal["dataset"] = "dataset"
    """Whatever `datasets.load_dataset` opens."""
    name: str
    """Hub name (owner/name), or a local Parquet, Arrow, JSON, CSV or tar file, or a folder of them."""
    config_name: str | None = None
    """Configuration (subset) of the data set, where it has several."""
    split: str = "train"
    """Split to train on."""
    val_split: str | None = None
    """Split to hold out, e.g. validation; null: a part of `split`."""
    image_column: str = "image"
    """Column with the images."""
    caption_column: str | None = "text"
    """Column with the captions (text, a list of texts, or class labels); null: none."""
    captions: CaptionChoice = "auto"
    """Where an image has several, in a list or in the lines of a text: first; random (another each time it is shown);
    joined; auto: all lines of a text as one caption, of a list the first."""
    streaming: bool = False
    """Read from front to back without downloading first."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Without val_split: share of the rows to hold out, chosen by row number."""
    val_count: int = Field(1000, gt=0)
    """Streaming without val_split: number of rows at the front of the first file that are the validation split."""
    background: Color = "#ffffff"
    """What shows through transparent images."""


def row_files(config: DatasetConfig) -> RowFiles:
    """Returns the files that rows of a data set may name."""
    path = Path(config.name).expanduser()
    if path.exists():
        return RowFiles(path if path.is_dir() else path.parent, None)
    return RowFiles(None, config.name)


def open_rows(config: DatasetConfig, split: Split, *, streaming: bool) -> Any:
    """Returns the rows of a split, before a validation split is taken from it."""
    import datasets

    wanted = config.val_split if split == "val" and config.val_split is not None else config.split
    path = Path(config.name).expanduser()
    builder = FILE_BUILDERS.get(path.suffix.lower())
    looks_local = builder is not None or config.name.startswith(("/", "./", "../", "~"))
    if looks_local and not path.exists():
        raise DataError(f"data file or folder {config.name!r} does not exist: check name")
    load = partial(datasets.load_dataset, split=wanted, streaming=streaming, trust_remote_code=False)
    try:
        if any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):  # written by save_to_disk
            rows = _saved_split(datasets.load_from_disk(str(path)), config, wanted)
            return rows.to_iterable_dataset() if streaming else rows
        if path.is_file():
            if builder is None:
                raise DataError(f"cannot tell what {config.name!r} is: expected {', '.join(FILE_BUILDERS)}")
            _check_files([path])
            # The name means itself: `datasets` takes it for a pattern.
            return load(builder, data_files=glob.escape(str(path)))
        if path.is_dir():
            _check_files(sorted(path.rglob("*")))
            return load(str(path), config.config_name, data_files=_files_below(path))
        if path.exists():
            raise DataError(f"data set {config.name!r} is a pipe or a device: give a file or a folder")
        return load(config.name, config.config_name)
    except DataError:
        raise
    except Exception as error:  # datasets, huggingface_hub, pyarrow and the network each raise their own kinds
        if not streaming and path.exists() and isinstance(error, datasets.exceptions.DatasetGenerationError):
            with suppress(Exception):  # report the first error, whatever fails now
                return readable_rows(_parquet_files(path, wanted))
        raise DataError(
            f"data set {config.name!r} (config {config.config_name}, split {wanted}) cannot be opened: "
            f"{one_line(error)}; check the name, and the network if it is on the Hub"
        ) from None


def _parquet_files(path: Path, wanted: str) -> list[str]:
    """Returns the files of a split, all of which must be Parquet files."""
    import datasets

    if path.is_file():
        files = [str(path)]
    else:
        files = datasets.load_dataset_builder(str(path), data_files=_files_below(path)).config.data_files[wanted]
    if any(FILE_BUILDERS.get(Path(file).suffix.lower()) != "parquet" for file in files):
        raise ValueError("not only Parquet files")
    return list(files)


def _saved_split(saved: Any, config: DatasetConfig, wanted: str) -> Any:
    """One split of what `save_to_disk` wrote: a dictionary of splits, or a data set that has none."""
    if not isinstance(saved, dict):
        if config.val_split is not None:
            raise DataError(f"data set {config.name!r} was saved without splits: set val_split to null")
        return saved
    if wanted not in saved:
        raise DataError(f"data set {config.name!r} has no split {wanted!r}, it has: {', '.join(saved)}")
    return saved[wanted]


def _files_below(folder: Path) -> Any:
    """Returns the files of a folder by split, as `datasets` finds them, where its own path reads as a pattern; else
    None."""
    from datasets.data_files import get_data_patterns

    base = glob.escape(str(folder.resolve()))
    if base == str(folder.resolve()):
        return None
    return {
        str(split): [f"{base}/{pattern}" for pattern in patterns] for split, patterns in get_data_patterns(base).items()
    }


def _check_files(paths: Iterable[Path]) -> None:
    """Raises DataError for what would cost `datasets` far more than its bytes.

    That is a Parquet file that becomes far larger than it is, and an archive with headers that no writer makes (read
    without end: tarfile's CVE-2025-8194) or with compressed members, which are unpacked without a limit.
    """
    for path in paths:
        if path.suffix.lower() == ".parquet" and path.is_file():
            check_sizes(path)
        if path.suffix.lower() != ".tar" or not path.is_file():
            continue
        try:
            with LocalFile(str(path)) as file:
                packed = next((member.name for member in members(file) if member.name.endswith(_COMPRESSED)), None)
        except HostileTarError as error:
            raise DataError(f"data file {str(path)!r} is refused: {error}") from None
        except (BrokenTarError, RemoteError):
            continue  # the readable part is used, the rest is reported
        if packed is not None:
            raise DataError(f"data file {str(path)!r}: {packed!r:.80} is compressed; put the images there as they are")


def one_line(error: Any) -> str:
    """Returns an error's message without line breaks, not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
