"""The items of a folder: images with their caption files, or those that metadata lists, wherever it lies.

A metadata file speaks for its own folder and those below, and names files relative to itself. Where several list the
same file the nearest wins; images that none speaks for have their captions in text files. A row may name a file inside
of its own folder alone, never by `..` or from the root: what a data set says is not to be trusted, what its owner has
linked into it is (`vqgan.data.folders.listing`).
"""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from vqgan.data.folders.leftovers import is_expected
from vqgan.data.folders.listing import METADATA_FILES, TEXT_ENDING, Listing, parent
from vqgan.data.folders.metadata import Table, read_metadata
from vqgan.data.folders.names import NameIndex
from vqgan.data.unused import Unused

BESIDE = ""
"""As `Entry.text_file`: the image's own name with the ending .txt."""
_CLIMBS = "refused: it leads out of the data set's folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """One item: the file's name relative to the data set's folder, and where its caption is."""

    name: str
    text: Any = None
    """What metadata gives."""
    listed: bool = False
    """Whether metadata lists it."""
    text_file: str | None = None
    """Its caption file, BESIDE where that has the usual name; None: it has none."""
    refused: str | None = None
    """Why its row cannot be used."""

    @property
    def has_caption(self) -> bool:
        """Whether there is something to read a caption from."""
        texts = self.text if isinstance(self.text, list) else [self.text]
        return self.text_file is not None or any(isinstance(text, str) and bool(text.strip()) for text in texts)


@dataclass(frozen=True)
class Catalog:
    """All items of a folder, what is in it and on no list, and its metadata files by their folder."""

    entries: list[Entry]
    unused: list[Unused]
    tables: dict[str, str]


def read_catalog(listing: Listing, folders: Iterable[str], *, require_captions: bool) -> Catalog:
    """Returns the items of a folder; metadata is read at its top and in and below `folders`.

    Raises DataError for metadata that cannot be used.
    """
    paths, unused = _chosen_metadata([name for name in listing.metadata if _is_within(parent(name), folders)])
    tables = {
        folder: read_metadata(listing.root / name, require_captions=require_captions) for folder, name in paths.items()
    }
    for folder, table in tables.items():
        if table.surplus:
            what = f"rows of {paths[folder]} with more cells than its header"
            unused.append(Unused.of(table.surplus, what, "put a text that holds a comma into quotation marks"))
    listed, repeated = _listed(tables, listing.files())
    unused += repeated
    named = {entry.name for entry in listed}
    walked: list[str] = []
    unlisted: list[str] = []
    for name in listing.images:
        if name not in named:
            (unlisted if _speaker(name, tables) is not None else walked).append(name)
    if unlisted:
        unused.append(Unused.of(unlisted, "images that no row of metadata lists", "add rows for them, or move them"))
    text_files, orphans = _text_files(walked, listing.texts)
    unused += _unread_texts([name for name in orphans if name not in named], tables, named | {*listing.images})
    return Catalog([*listed, *(Entry(name, text_file=text_files.get(name)) for name in walked)], unused, paths)


def _chosen_metadata(names: Iterable[str]) -> tuple[dict[str, str], list[Unused]]:
    """Folder -> its metadata file, in order; and those beside it."""
    ranked = sorted(names, key=lambda name: (parent(name), METADATA_FILES.index(_own_name(name).lower()), name))
    chosen: dict[str, str] = {}
    beside = [name for name in ranked if chosen.setdefault(parent(name), name) != name]
    reason = f"of two lists in a folder {METADATA_FILES[0]} is read; leave one out"
    return chosen, [Unused.of(beside, "further metadata files", reason)] if beside else []


def _listed(tables: dict[str, Table], files: NameIndex) -> tuple[list[Entry], list[Unused]]:
    """Returns the items of all rows, and the rows that add nothing."""
    exact = {posixpath.join(folder, row.file_name) for folder, table in tables.items() for row in table.rows}
    located = [
        (folder, _locate(folder, row.file_name, files, exact), row.text)
        for folder, table in tables.items()  # the top first, so that the last to list a file is the nearest
        for row in table.rows
    ]
    nearest = {name: folder for folder, (name, _), _ in located}
    entries, said, again, overruled = [], dict[str, list[Any]](), [], []
    for folder, (name, refused), text in located:
        if refused is None and nearest[name] != folder:
            overruled.append(name)
        elif refused is None and text in said.setdefault(name, []):
            again.append(name)
        else:
            said.setdefault(name, []).append(text)
            entries.append(Entry(name, text, listed=True, refused=refused))
    unused = []
    if again:
        unused.append(Unused.of(again, "rows of metadata that repeat another", "used once; a duplicate", lost=False))
    if overruled:
        reason = "the list in the file's own folder is used"
        unused.append(Unused.of(overruled, "rows for files that a nearer metadata file lists", reason, lost=False))
    return entries, unused


def _locate(folder: str, given: str, files: NameIndex, exact: set[str]) -> tuple[str, str | None]:
    """Returns the name that a row means, and why it is refused; one that is not there is looked for when its turn
    comes."""
    prefix = f"{folder}/" if folder else ""
    if not given:
        return prefix, "its metadata row has no file_name"
    if posixpath.isabs(given) or _climbs(given):
        return prefix + given, _CLIMBS
    name = posixpath.join(folder, posixpath.normpath(given))
    if name in files:
        return name, None
    slashed = given.replace("\\", "/")
    if PureWindowsPath(given).drive or posixpath.isabs(slashed) or _climbs(slashed):
        return prefix + given, _CLIMBS
    meant = files.find(posixpath.join(folder, posixpath.normpath(slashed)))
    # Another row may name that very file; then this one means a file that is not there.
    return (name if meant is None or meant in exact else meant), None


def _climbs(name: str) -> bool:
    return PurePosixPath(posixpath.normpath(name)).parts[:1] == ("..",)


def _text_files(images: list[str], texts: list[str]) -> tuple[dict[str, str], list[str]]:
    """Returns image -> its caption file, and the texts of no image."""
    there = set(texts)
    found = {name: BESIDE for name in images if _usual_text(name) in there}
    rest = there - {_usual_text(name) for name in found}
    if rest:
        index = NameIndex(rest)
        others = {name: index.find(_usual_text(name)) for name in images if name not in found}
        found |= {name: text for name, text in others.items() if text is not None}
        rest -= set(found.values())
    return found, sorted(rest)


def _unread_texts(texts: Iterable[str], tables: dict[str, Table], images: set[str]) -> list[Unused]:
    """Text files that are no captions: beside images that metadata speaks for, or beside none."""
    stems = {_stem(name) for name in images}
    beside: dict[bool, list[str]] = {}
    orphans = []
    for name in texts:
        if _stem(name) in stems:
            speaker = _speaker(name, tables)
            beside.setdefault(speaker is None or not tables[speaker].has_text, []).append(name)
        elif not is_expected(name):
            orphans.append(name)
    found = [
        Unused.of(names, "caption files", "metadata gives the captions of these images" + remedy, lost=lost)
        for lost, names in beside.items()
        for remedy in [", and has no column text: add one" if lost else ""]
    ]
    if orphans:
        reason = "a caption is in name.txt beside the image name.png"
        found.append(Unused.of(orphans, "text files of no image", reason, lost=False))
    return found


def _speaker(name: str, tables: dict[str, Any]) -> str | None:
    """Returns the nearest folder above a name that has metadata."""
    folder = parent(name)
    while tables:
        if folder in tables:
            return folder
        if not folder:
            break
        folder = parent(folder)
    return None


def _is_within(folder: str, folders: Iterable[str]) -> bool:
    return not folder or any(not other or folder == other or folder.startswith(f"{other}/") for other in folders)


def _own_name(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _usual_text(name: str) -> str:
    return _stem(name) + TEXT_ENDING
