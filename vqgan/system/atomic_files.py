"""Files and folders that change whole or not at all: over a kill, a full disk, a power cut.

What is new is written beside the old one under a hidden name, flushed down to the disk, and renamed last.
"""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqgan.errors import UserError

GO_ON = "run the same command again: it goes on from the last checkpoint, if there is one"
"""What a run's user does once the cause is mended."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_FREE_SPACE = "free some space"
_NO_FOLDER = "a file is where a folder belongs: move it away or choose another folder"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make the folder writable, or choose another run_dir",
    errno.EACCES: "make the folder writable, or choose another run_dir",
    errno.EPERM: "make the folder writable, or choose another run_dir",
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EIO: "have the disk looked at, or move the run to another",
}


class CannotWriteError(UserError, OSError):
    """A file of a run could not be written; the message is one line with the remedy."""


@contextmanager
def writing(path: Path, then: str = GO_ON) -> Iterator[None]:
    """Put what the system says of a failed write at `path` into one line, with what to do `then`, once it is mended.
    Raises CannotWriteError."""
    try:
        yield
    except CannotWriteError:
        raise
    except Exception as error:
        number = _system_error(error)
        if number is None:
            raise
        remedy = _REMEDIES.get(number, "mend that")
        raise CannotWriteError(f"cannot write {path}: {os.strerror(number)}; {remedy}, then {then}") from None


def check_space(folder: Path, needed: int) -> None:
    """Raises CannotWriteError where `needed` bytes do not fit beside what `folder` holds."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CannotWriteError(
            f"cannot write {folder}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; {_FREE_SPACE}, "
            f"then {GO_ON}"
        )


def write_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of the file at `path`."""
    fresh = _hidden(path, "new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of the one at `path`; not if filling it fails."""
    recover_folder(path)
    fresh = _hidden(path, "new")
    fresh.mkdir(parents=True)
    try:
        yield fresh
        sync_tree(fresh)
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    put_in_place(fresh, path)


def put_in_place(fresh: Path, path: Path) -> None:
    """Give the folder `fresh`, which is on the disk already, the name `path`; what bore it is removed.

    In one step where the system can exchange two names. Elsewhere a kill may leave `path` missing, and
    `recover_folder` gives it back.
    """
    old = _hidden(path, "old")
    shutil.rmtree(old, ignore_errors=True)
    if not path.exists():
        fresh.rename(path)
    elif _exchange(fresh, path):
        old = fresh
    else:
        path.rename(old)
        fresh.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """After a kill: a folder that was just being replaced is there again, and nothing is left of its successor."""
    old = _hidden(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (old, _hidden(path, "new")):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that must be there as a whole or not at all. A kill may leave one named .removed-*."""
    doomed = _hidden(path, "removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flush a file, or all files of a folder, down to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            _sync(path)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder down to the disk, where its file system knows how to."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{path.name}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step: Linux with glibc, on most of its file systems."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _system_error(error: Exception) -> int | None:
    """Returns the system's number for what went wrong; libraries written in Rust have it in their message alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    named = re.search(r"\(os error (\d+)\)", str(error))
    return int(named[1]) if named else None
