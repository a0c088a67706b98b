"""Opens untrusted files: regular files only, and no more bytes than a limit.

An untrusted name may be a pipe that nobody writes to, an endless device, or a sparse file of a terabyte.
`open_regular` refuses the first two before it reads; `read_bounded` refuses the third.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_TEXT_BYTES = 1 << 24
"""Largest list of prompts in bytes: 16 MB are some 200,000 prompts."""


class RefusedFileError(OSError):
    """A file that is refused; `strerror` says why, as for every OSError."""

    def __init__(self, cause: str) -> None:
        super().__init__(0, cause)

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: str | Path) -> BinaryIO:
    """Returns a regular file, or a link to one, opened for reading. Raises RefusedFileError for a pipe, device or
    folder, and OSError where it cannot be opened."""
    check_regular(path)  # before opening it, which some devices take for a command
    # Should a pipe have taken its place: opening it does not wait for its writer, and then it is refused.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _check_is_regular(os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_regular(path: str | Path) -> int:
    """Returns how many bytes a regular file, or the one that a link leads to, has. Raises what `open_regular`
    raises."""
    found = Path(path).stat()
    _check_is_regular(found.st_mode)
    return found.st_size


def read_bounded(path: str | Path, limit: int, *, pipes: bool = False) -> bytes:
    """Returns the content of a regular file of at most `limit` bytes; with `pipes` also what a pipe or a device gives.

    Raises RefusedFileError for any other file, OSError where it cannot be read.
    """
    with Path(path).open("rb") if pipes else open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:  # not one byte is read
            raise RefusedFileError(f"it has {size:,} bytes, the limit is {limit:,}")
        # One more than allowed: a file may grow, and a device has no size.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise RefusedFileError(f"it has more than {limit:,} bytes, which is the limit")
    return content


def _check_is_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise RefusedFileError(f"it is {kind}, not a regular file")
