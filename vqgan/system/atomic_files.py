"""Atomic writes of files and folders, safe against kills, full disks and power cuts.

New content is written beside the old one under a hidden name, flushed to disk, and renamed last.
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
"""What to do once the cause is fixed."""

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
    """Raises CannotWriteError if `needed` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CannotWriteError(
            f"cannot write {folder}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; {_FREE_SPACE}, "
            f"then {GO_ON}"
        )


def write_file(path: Path, content: bytes) -> None:
    """Replaces the file at `path` by `content`."""
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
    """Context with a new folder to fill, which then replaces the one at `path`, unless filling it fails."""
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
    """Cleans up after a kill: restores a folder that was being replaced, and removes its unfinished successor."""
    old = _hidden(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (old, _hidden(path, "new")):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder atomically. A kill may leave one named .removed-*."""
    doomed = _hidden(path, "removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flushes a file, or all files of a folder, to disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            _sync(path)


def sync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to disk, if its file system supports it."""
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
    """Exchanges the names of two folders atomically: Linux with glibc, on most file systems."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _system_error(error: Exception) -> int | None:
    """Returns the errno of an error; libraries written in Rust have it only in their message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    named = re.search(r"\(os error (\d+)\)", str(error))
    return int(named[1]) if named else None
