"""SHA256SUMS: checksums of the files of a folder. `sha256sum -c SHA256SUMS` reads it too.

safetensors and JSON do not notice a flipped byte, which gives other weights or another vocabulary.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
_LARGEST = 1 << 20
"""Bytes of such a file: a folder of others may hold anything under this name."""


def add_checksums(folder: Path, names: Iterable[str]) -> None:
    """Records the checksums of these files of the folder; those of other files are unchanged."""
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
    """Returns whether the folder has checksums."""
    return (folder / SUMS_FILE).is_file()


def noted_files(folder: Path) -> list[str]:
    """Returns the files that have checksums; empty if there are none, or they cannot be read."""
    try:
        return sorted(_read(folder) or ())
    except (OSError, ValueError):
        return []


def _read(folder: Path) -> dict[str, str] | None:
    """Parses checksums by name. Raises ValueError for any other text."""
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
