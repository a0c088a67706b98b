"""Which subfolders of a folder are its splits: `train/` beside `valid/`, by the names that data sets give them.

The names are those of `datasets`, in any case and with a number or a suffix behind (`val2017`, `Test_images`). A folder
is split where it has a training and a validation folder; where it has several of a kind the likeliest name wins, and
what neither split uses is reported.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vqgan.data.folders.listing import Listing, by_first_folder, parent
from vqgan.data.unused import Unused

TRAIN_FOLDERS = ("train", "training")
VAL_FOLDERS = (
    *("heldout", "held-out", "held_out", "holdout", "validation", "valid", "val", "dev", "eval", "evaluation"),
    *("test", "testing"),
)
"""Names of the validation folder, the likeliest first. `test/` is one where there is no other: a test set that must
not be looked at belongs elsewhere."""


@dataclass(frozen=True)
class SplitFolders:
    """The names of both."""

    train: str
    val: str


def split_folders(folders: Sequence[str]) -> SplitFolders | None:
    """Returns the splits among the subfolders of one folder; None where it has not both."""
    train, val = _first(folders, TRAIN_FOLDERS), _first(folders, VAL_FOLDERS)
    return None if train is None or val is None else SplitFolders(train, val)


def beside_the_splits(listing: Listing, splits: SplitFolders) -> list[Unused]:
    """Returns images that lie in neither split."""
    found = []
    for folder, images in by_first_folder(listing.images).items():
        if folder in (splits.train, splits.val):
            continue
        where = f"in {folder}/" if folder else "that lie"
        used = f"beside {splits.train}/ and {splits.val}/, which alone are used"
        if _first([folder], VAL_FOLDERS) is not None:
            reason = f"{splits.val}/ is the validation split; give another data set for a test"
            found.append(Unused.of(images, f"images {where}", reason, lost=False))
        else:
            found.append(Unused.of(images, f"images {where} {used}", "move them into one of the two"))
    return found


def unlikely_splits(listing: Listing) -> list[Unused]:
    """Returns what looks as if it were meant as a split of a folder that is not split: its images are trained on."""
    found = []
    with_images = _folders_of(listing.images)
    inner: dict[str, list[str]] = {}
    for folder in with_images:
        inner.setdefault(parent(folder), []).append(folder.rpartition("/")[2])
    top = inner.pop("", [])
    below = {folder: splits for folder in sorted(inner) if (splits := split_folders(inner[folder])) is not None}
    if below:
        names = [f"{folder}/ with {splits.train}/ and {splits.val}/" for folder, splits in below.items()]
        reason = "their images are shared out anew; to use its splits, set path to such a folder"
        found.append(Unused.of(names, "folders that are split, below the data set's own", reason))
    train = _first(top, TRAIN_FOLDERS)
    # Beside images that lie at the top no folder is a class.
    likely = VAL_FOLDERS if any("/" not in name for name in listing.images) else _CERTAIN
    val = _first([name for name in top if name.lower() in likely], VAL_FOLDERS)
    if train is not None and len(top) > 1:
        others = sorted(name for name in top if name != train)
        reason = "the images of all are shared out anew; to hold out a folder, call it valid/"
        found.append(Unused.of(others, f"folders beside {train}/ whose names say no split", reason, lost=False))
    elif val is not None:
        reason = "its images are shared out anew with all others; to hold it out, put the others into train/"
        found.append(Unused.of([f"{val}/"], "validation folder without a train/ beside it", reason, lost=False))
    return found


_CERTAIN = ("heldout", "held-out", "held_out", "holdout", "validation", "val")
"""No class of images is called so, as one may be called `valid` or `test`."""


def _folders_of(names: Iterable[str]) -> set[str]:
    """All folders, at any depth, that hold one of the names."""
    found: set[str] = set()
    for folder in {parent(name) for name in names}:
        while folder and folder not in found:
            found.add(folder)
            folder = parent(folder)
    return found


def _first(folders: Sequence[str], names: Iterable[str]) -> str | None:
    """Returns the folder with the likeliest of `names`: one that is called so, else so with a number or a suffix
    behind."""
    for pattern in ("{}", r"{}[-._0-9].*"):
        for name in names:
            matches = [
                folder for folder in folders if re.fullmatch(pattern.format(re.escape(name)), folder.lower(), re.DOTALL)
            ]
            if matches:
                return min(matches)
    return None
