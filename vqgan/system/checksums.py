"""SHA256SUMS: what the files of a folder were when they were written. `sha256sum -c SHA256SUMS` reads it too.

safetensors and JSON take a file with a flipped byte for a whole one, and give other weights, or another vocabulary.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
_LARGEST = 1 << 20
"""Bytes of such a file: a folder of others may hold anything under this name."""


def add_checksums(folder: Path, names: Iterable[str]) -> None:
    """Note what these files of the folder are now; what is noted of others stays."""
    try:
        known = _read(folder) or {}
    except ValueError:
        known = {}
    known |= {name: file_sha256(folder / name) for name in names}
    lines = "".join(f"{checksum}  {name}\n" for name, checksum in sorted(known.items()))
    (folder / SUMS_FILE).write_text(lines, encoding="utf-8")


def changed_since_written(folder: Path, name: str) -> str:
    """Returns what is wrong with a file of the folder, in words; nothing where it is as it was written, or no checksums
    are there at all: earlier versions wrote none."""
    try:
        known = _read(folder)
    except (OSError, ValueError):
        return f"{SUMS_FILE} beside it cannot be read"
    if known is None:
        return ""
    if name not in known:
        return f"{SUMS_FILE} beside it does not name it"
    try:
        same = file_sha256(folder / name) == known[name]
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return "" if same else f"it does not have its checksum in {SUMS_FILE}"


def has_checksums(folder: Path) -> bool:
    """Returns whether the folder's files were noted when they were written."""
    return (folder / SUMS_FILE).is_file()


def noted_files(folder: Path) -> list[str]:
    """Returns the files whose checksums there are; none where there are no checksums, or they cannot be read."""
    try:
        return sorted(_read(folder) or ())
    except (OSError, ValueError):
        return []


def _read(folder: Path) -> dict[str, str] | None:
    """Returns the checksums by names. Raises ValueError where it is no list of them."""
    if not has_checksums(folder):
        return None
    if (folder / SUMS_FILE).stat().st_size > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    return {name: checksum for checksum, name in pairs}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
