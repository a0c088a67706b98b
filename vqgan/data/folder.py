"""A folder of pictures, captions beside them.

Captions stand in a text file of the picture's name (`cat.png`, `cat.txt`) or in a `metadata.csv` / `metadata.jsonl`
with the columns `file_name` and `text` (the Hugging Face imagefolder convention; in JSON the text may be a list of
several); metadata, where there is any, also says which files belong to the data set. Held out is a subfolder (`train/`
beside `heldout/`, `validation/`, `val/` or `test/`), or else a share of the files chosen by a hash of their names, so
that it stays when files are added.
"""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field

from vqgan.config import Config
from vqgan.data.captions import CaptionChoice, read_captions
from vqgan.data.images import Colour, decode_image, parse_colour
from vqgan.data.source import DataError, Sample, Split, UnusableSample, printable
from vqgan.data.split import hash_score, items_of_split

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif"),
    *(".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".qoi"),
)
"""What counts as a picture where no metadata lists the files; upper case likewise."""
HELDOUT_FOLDERS = ("heldout", "validation", "val", "test")
"""Names of the held-out subfolder beside `train/`, the first that exists."""
METADATA_FILES = ("metadata.csv", "metadata.jsonl")


class FolderConfig(Config):
    """Pictures in a folder, with captions in text files or in metadata.csv / metadata.jsonl."""

    kind: Literal["folder"] = "folder"
    """A local folder of pictures."""
    path: str
    """The folder; `~` is the home folder."""
    captions: CaptionChoice = "auto"
    """Where a picture has several, in the lines of its text file or a list in metadata.jsonl: first; random (another
    each time it is shown); joined; auto: all lines of a text file as one caption, of a list the first."""
    heldout_share: float = Field(0.05, gt=0, lt=1)
    """Share of the pictures to hold out where there are no train/ and heldout/ subfolders."""
    background: Colour = "#ffffff"
    """What shows through transparent pictures."""


@dataclass(frozen=True)
class _Item:
    """One picture: its name relative to the data set's folder, and what the metadata gives as its caption."""

    name: str
    caption: Any = None


class Folder:
    """The `folder` source. Raises DataError when there is no picture, or no caption and `require_captions`."""

    def __init__(
        self, config: FolderConfig, split: Split, *, require_captions: bool = False, at_least: int | None = None
    ) -> None:
        self._background = parse_colour(config.background)
        self._at_least = at_least
        self._captions = config.captions
        self._require_captions = require_captions
        root = Path(config.path).expanduser()
        if not root.is_dir():
            problem = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"data folder {str(root)!r} {problem}: set path to a folder that holds the pictures")
        folder, is_split = _split_folder(root, split)
        candidates = [base / file for base in (folder, root) for file in METADATA_FILES]
        metadata = next((path for path in candidates if path.is_file()), None)
        self._base = (metadata.parent if metadata else folder).resolve()
        self._captions_from_metadata = metadata is not None
        items = _read_metadata(metadata, require_captions) if metadata else _walk(folder)
        if is_split and metadata and metadata.parent == root:  # one list for all splits, names begin with the folder
            items = [item for item in items if PurePosixPath(item.name).parts[:1] == (folder.name,)]
        if not items:
            where = f"{metadata} lists no pictures" if metadata else f"no pictures in {str(folder)!r}"
            raise DataError(f"{where} (known: {' '.join(EXTENSIONS)}); check path and the file names")
        if require_captions and not any(self._has_caption(item) for item in items):
            raise DataError(
                f"no picture in {str(folder)!r} has a caption, and this run needs captions: put them into name.txt "
                "beside name.png, or into metadata.csv with the columns file_name,text"
            )
        if not is_split:
            scores = np.array([hash_score(item.name) for item in items])
            items = [items[number] for number in items_of_split(scores, config.heldout_share, split)]
        if not items:
            raise DataError(f"{str(root)!r} holds a single picture, none is left to hold out: add more pictures")
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        item = self._items[index]
        path = self._path(item.name)
        captions = self.captions(index)
        picture = decode_image(path, item.name, self._background, at_least=self._at_least)
        return Sample(picture, captions[0] if captions else None, printable(item.name), captions)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions that training may show, without reading the picture; a blank one counts as missing."""
        item = self._items[index]
        text = item.caption
        if not self._captions_from_metadata:
            text = _read_text(item.name, (self._base / item.name).with_suffix(".txt"), self._base)
        return read_captions(text, self._captions, item.name, required=self._require_captions)

    def _path(self, name: str) -> Path:
        """Where a picture lies. Raises UnusableSample when that is nowhere, or outside of the data set's folder."""
        if not name:
            raise UnusableSample("(no name)", "its metadata row has no file_name")
        try:
            path = (self._base / name).resolve()
            if not path.is_relative_to(self._base):
                raise UnusableSample(name, "refused: it leads out of the data set's folder")
            if not path.is_file():
                raise UnusableSample(name, "not a regular file" if path.exists() else "the file is missing")
        except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL character, links in a circle
            raise UnusableSample(name, f"not a usable file name: {error}") from None
        return path

    def _has_caption(self, item: _Item) -> bool:
        if self._captions_from_metadata:
            texts = item.caption if isinstance(item.caption, list) else [item.caption]
            return any(isinstance(text, str) and bool(text.strip()) for text in texts)
        return (self._base / item.name).with_suffix(".txt").is_file()


def _split_folder(root: Path, split: Split) -> tuple[Path, bool]:
    """The folder to read, and whether it is the split already."""
    held_out_folder = next((root / name for name in HELDOUT_FOLDERS if (root / name).is_dir()), None)
    if held_out_folder is None or not (root / "train").is_dir():
        return root, False
    return (root / "train" if split == "train" else held_out_folder), True


def _walk(folder: Path) -> list[_Item]:
    """The pictures below `folder` in order of their names; hidden ones left out, linked folders not entered."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in EXTENSIONS:
                names.append((Path(place) / file).relative_to(folder).as_posix())
    return [_Item(name) for name in sorted(names)]


def _read_text(name: str, path: Path, base: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(base):
            raise UnusableSample(name, "refused: its caption file leads out of the data set's folder")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UnusableSample(name, f"its caption file {path.name} is not UTF-8 text") from None
    except OSError as error:
        raise UnusableSample(name, f"its caption file {path.name} cannot be read: {error.strerror}") from None


def _read_metadata(path: Path, require_captions: bool) -> list[_Item]:
    """The rows of a metadata file. Raises DataError when it is not what its ending says, or lacks a column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_csv_rows(file, path) if path.suffix == ".csv" else _json_rows(file, path))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in ("file_name", "text") if require_captions else ("file_name",):
        if rows and column not in columns:
            found = ", ".join(str(name) for name in columns)
            raise DataError(f"{path} has no column {column!r}, it has: {found}; rename the one that is meant")
    return [_Item(str(row.get("file_name") or ""), row.get("text")) for row in rows]


def _csv_rows(lines: Any, path: Path) -> Iterator[dict[str, Any]]:
    try:
        for row in csv.DictReader(lines):
            row.pop(None, None)  # cells beyond the header
            yield row
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from None


def _json_rows(lines: Any, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is not an object with file_name and text")
        yield row
