"""What lies below a folder, links included, each real folder once.

A link is followed wherever it leads: it is part of the folder as its owner sees it, and large collections are put
together of links. Linked folders come after all others, in order of their names, and one that leads to a folder that
is listed already, or that holds the folder itself, is not entered, so that nothing comes twice and no listing is
endless. Hidden files and folders are left out; nothing is opened.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vqgan.data.folders.names import NameIndex

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".ico", ".qoi"),
)
"""What counts as an image where no metadata lists the files, upper case likewise: all endings of `images.FORMATS`."""
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
"""Lists of files with their captions, upper case likewise; of two in one folder the first."""
TEXT_ENDING = ".txt"


@dataclass
class Listing:
    """Names relative to the folder, with slashes, in order of their names."""

    root: Path
    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Files ending in .txt."""
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """All other regular files."""
    folders: list[str] = field(default_factory=list)
    """Those that were entered, linked ones too."""
    repeated: list[str] = field(default_factory=list)
    """Linked folders that lead to one that is listed already, or that holds the folder itself."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folders that cannot be listed -> why."""
    dead: list[str] = field(default_factory=list)
    """Links to nothing, unless their ending is an image's: those are items that turn out to be missing."""
    special: list[str] = field(default_factory=list)
    """What is neither file nor folder: pipes, sockets, devices."""

    def files(self) -> NameIndex:
        """All files, to find those that a row of metadata names."""
        return NameIndex([*self.images, *self.texts, *self.others])


def list_folder(root: Path) -> Listing:
    """Everything below `root`."""
    listing = Listing(root)
    place = root.resolve()
    entered = {_identity(folder) for folder in place.parents}  # as if they were, so that no link leads into them
    links = [""]
    while links:
        links.sort(reverse=True)
        _enter(links.pop(), listing, entered, links)
    for names in (listing.images, listing.texts, listing.metadata, listing.others, listing.folders):
        names.sort()
    return listing


def ending(name: str) -> str:
    """`.jpg` of `a/b.JPG`; empty where the name has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each of a million names takes seconds


def by_first_folder(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by the first folder of their path; empty for those that lie at the top."""
    groups: dict[str, list[str]] = {}
    for name in names:
        first, slash, _ = name.partition("/")
        groups.setdefault(first if slash else "", []).append(name)
    return groups


def parent(name: str) -> str:
    """Returns the folder of a name; empty at the top."""
    return name.rpartition("/")[0]


def _enter(start: str, listing: Listing, entered: set[tuple[int, int]], links: list[str]) -> None:
    """List a folder and the real folders below it; `links` receives the linked ones."""
    pending = [start]
    while pending:
        name = pending.pop()
        path = listing.root / name if name else listing.root
        try:
            if (identity := _identity(path)) in entered:
                listing.repeated.append(name)
                continue
            entered.add(identity)
            with os.scandir(path) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            listing.unreadable[name] = error.strerror or type(error).__name__
            continue
        if name:
            listing.folders.append(name)
        for entry in found:
            full = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(full)
            elif entry.is_symlink():
                _sort_link(full, entry, listing, links)
            elif entry.is_file(follow_symlinks=False):
                _sort_file(full, listing)
            else:
                _sort_special(full, listing)


def _sort_link(name: str, entry: "os.DirEntry[str]", listing: Listing, links: list[str]) -> None:
    try:
        mode = entry.stat().st_mode
    except OSError:  # nothing there, or links in a circle
        (listing.images if ending(name) in EXTENSIONS else listing.dead).append(name)
        return
    if stat.S_ISDIR(mode):
        links.append(name)
    elif stat.S_ISREG(mode):
        _sort_file(name, listing)
    else:
        _sort_special(name, listing)


def _sort_file(name: str, listing: Listing) -> None:
    suffix = ending(name)
    if suffix in EXTENSIONS:
        listing.images.append(name)
    elif suffix == TEXT_ENDING:
        listing.texts.append(name)
    elif suffix in (".csv", ".jsonl") and PurePosixPath(name).name.lower() in METADATA_FILES:
        listing.metadata.append(name)
    else:
        listing.others.append(name)


def _sort_special(name: str, listing: Listing) -> None:
    # With an image's ending it is an item, which is refused by name when its turn comes.
    (listing.images if ending(name) in EXTENSIONS else listing.special).append(name)


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino
