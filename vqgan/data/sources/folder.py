"""A folder of images, captions beside them.

Captions stand in a text file of the image's name (`cat.png`, `cat.txt`) or in a `metadata.csv` / `metadata.jsonl` with
the columns `file_name` and `text` (the Hugging Face imagefolder convention; in JSON the text may be a list of several),
at the top or in subfolders; metadata, where there is any, also says which files belong to the data set
(`vqgan.data.folders.catalog`). The validation split is a subfolder (`train/` beside `valid/`,
`vqgan.data.folders.split_folders`), or else a share of the files chosen by a hash of their names, so that it stays when
files are added. What is in the folder and not used is reported (`unused`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from vqgan.config.schema import Config
from vqgan.data.captions import MAX_CAPTION_BYTES, CaptionChoice, read_captions
from vqgan.data.folders.catalog import BESIDE, Catalog, Entry, read_catalog
from vqgan.data.folders.leftovers import leftover_files
from vqgan.data.folders.listing import EXTENSIONS, Listing, list_folder
from vqgan.data.folders.names import composed
from vqgan.data.folders.split_folders import SplitFolders, beside_the_splits, split_folders, unlikely_splits
from vqgan.data.images.decode import Color, decode_image, parse_color
from vqgan.data.source import DataError, Sample, Split, UnusableSample, printable
from vqgan.data.split import by_score, hash_score, items_of_split
from vqgan.data.unused import Unused
from vqgan.system.bounded_file import RefusedFileError, check_regular, read_bounded


class FolderConfig(Config, may_change=("kind", "path", "captions", "val_fraction", "background")):
    """Images in a folder, with captions in text files or in metadata.csv / metadata.jsonl."""

    kind: Literal["folder"] = "folder"
    """A local folder of images."""
    path: str
    """The folder; `~` is the home folder."""
    captions: CaptionChoice = "auto"
    """Where an image has several, in the lines of its text file or a list in metadata.jsonl: first; random (another
    each time it is shown); joined; auto: all lines of a text file as one caption, of a list the first."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the images to hold out where there are no train/ and val/ subfolders."""
    background: Color = "#ffffff"
    """What shows through transparent images."""


class Folder:
    """The `folder` source. Raises DataError when there is no image, or no caption and `require_captions`."""

    def __init__(
        self, config: FolderConfig, split: Split, *, require_captions: bool = False, min_side: int | None = None
    ) -> None:
        self._background = parse_color(config.background)
        self._at_least = min_side
        self._captions = config.captions
        self._require_captions = require_captions
        self._root = Path(config.path).expanduser()
        # 1. What lies there, and which of it are the splits.
        listing = _listing(self._root)
        splits = split_folders([name for name in listing.folders if "/" not in name])
        used = [""] if splits is None else [splits.train, splits.val]
        catalog = read_catalog(listing, used, require_captions=require_captions)
        self.unused = _unused(listing, catalog, splits)
        """What lies in the folder and is not used, of both splits."""
        # 2. The split's own. Names begin below its folder, unless one list at the top names the files of all.
        folder = "" if splits is None else splits.train if split == "train" else splits.val
        self._prefix = f"{folder}/" if folder and "" not in catalog.tables else ""
        entries = [entry for entry in catalog.entries if not folder or entry.name.startswith(f"{folder}/")]
        self._check(entries, self._root / folder, catalog)
        scores = np.array([hash_score(composed(self._name(entry))) for entry in entries])
        if splits is None:
            entries = [entries[number] for number in items_of_split(scores, config.val_fraction, split)]
        elif split == "val":
            entries = [entries[number] for number in by_score(scores)]
        if not entries:
            raise DataError(f"{str(self._root)!r} holds a single image, none is left to hold out: add more images")
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        name = self._name(entry)
        if entry.refused is not None:
            raise UnusableSample(name or "(no name)", entry.refused)
        path = _regular_file(self._root / entry.name, lambda cause: UnusableSample(name, cause))
        captions = self.captions(index)
        image = decode_image(path, name, self._background, min_side=self._at_least)
        return Sample(image, captions[0] if captions else None, printable(name), captions)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions that training may show, without reading the image; a blank one counts as missing."""
        entry = self._entries[index]
        text, name = entry.text, self._name(entry)
        if entry.text_file is not None:
            path = self._root / entry.name
            text = _prefill(
                name, path.with_suffix(".txt") if entry.text_file == BESIDE else self._root / entry.text_file
            )
        return read_captions(text, self._captions, name, required=self._require_captions)

    def _name(self, entry: Entry) -> str:
        return entry.name.removeprefix(self._prefix)

    def _check(self, entries: list[Entry], folder: Path, catalog: Catalog) -> None:
        """Raises DataError where there is nothing to use."""
        if not entries:
            lists = ", ".join(str(self._root / name) for name in catalog.tables.values())
            where = f"{lists} lists no images" if lists else f"no images in {str(folder)!r}"
            there = f"; there are {self.unused[0]}" if self.unused else ""
            raise DataError(f"{where} (known: {' '.join(EXTENSIONS)}); check path and the file names{there}")
        if self._require_captions and not any(entry.has_caption for entry in entries):
            raise DataError(
                f"no image in {str(folder)!r} has a caption, and this run needs captions: put them into name.txt "
                "beside name.png, or into metadata.csv with the columns file_name,text"
            )


def _listing(root: Path) -> Listing:
    """Returns what lies in the data set's folder. Raises DataError where it is none, or cannot be read."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data folder {str(root)!r} {problem}: set path to a folder that holds the images")
    listing = list_folder(root)
    if "" in listing.unreadable:
        raise DataError(f"data folder {str(root)!r} cannot be read: {listing.unreadable['']}")
    return listing


def _unused(listing: Listing, catalog: Catalog, splits: SplitFolders | None) -> tuple[Unused, ...]:
    named = {entry.name for entry in catalog.entries if entry.listed}
    found = list(catalog.unused)
    if splits is None:
        found += unlikely_splits(listing)
    else:
        found += beside_the_splits(listing, splits)
        places = (f"{splits.train}/", f"{splits.val}/")
        outside = [entry.name for entry in catalog.entries if entry.listed and not entry.name.startswith(places)]
        if outside:
            what = f"rows of metadata that name nothing in {splits.train}/ or {splits.val}/"
            found.append(Unused.of(outside, what, "a row's file_name begins with one of them"))
    return (*found, *leftover_files(listing, named, has_metadata=bool(catalog.tables)))


def _regular_file(path: Path, unusable: Callable[[str], UnusableSample]) -> Path:
    """Returns the same path, of a file that can be read to its end. Raises what `unusable` makes of the cause."""
    try:
        size = check_regular(path)
    except FileNotFoundError:
        raise unusable("the file is missing") from None
    except RefusedFileError as error:
        raise unusable(str(error)) from None
    except (OSError, ValueError) as error:  # name too long, NUL character, links in a circle, a file as a folder
        raise unusable(f"not a usable file name: {error}") from None
    if not size:  # as the files of /proc seem to be, some of which never end
        raise unusable("the file is empty (0 bytes)")
    return path


def _prefill(name: str, path: Path) -> str | None:
    try:
        # What has no size is empty: so the files of /proc seem to be, some of which never end.
        return read_bounded(path, MAX_CAPTION_BYTES).decode("utf-8-sig") if check_regular(path) else ""
    except UnicodeDecodeError:
        raise UnusableSample(name, f"its caption file {path.name} is not UTF-8 text") from None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableSample(name, f"its caption file {path.name} cannot be read: {error.strerror}") from None
