"""Cache of what is known about shards after reading them, in the user's cache folder.

A note is believed as long as the shard's stamp is the same: size and modification time of a file, size and tag of what
a server gives. Whatever is wrong with a note, or with the folder, costs only that the shard is read again.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

_VERSION = 2
"""Of what a note means; 2: what stands behind an end mark counts."""

Arrays = dict[str, np.ndarray]


def write_cached(kind: str, shard: str, version_key: str, arrays: Arrays) -> None:
    """Writes an entry of some `kind` about a shard, atomically; nothing is written for an empty version key."""
    place = _place(kind, shard)
    with suppress(OSError):
        if not version_key:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            try:
                np.savez(file, version_key=np.array(f"{_VERSION} {version_key}"), **arrays)  # type: ignore[arg-type]
                file.flush()
                Path(file.name).replace(place)
            except BaseException:
                Path(file.name).unlink()
                raise


def read_cached(kind: str, shard: str, version_key: Callable[[], str]) -> Arrays | None:
    """Returns the note of some `kind` about a shard; `version_key` is asked only where there is one."""
    place = _place(kind, shard)
    if not place.is_file():
        return None
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if str(arrays["version_key"]) == f"{_VERSION} {version_key()}":
                return {name: arrays[name] for name in arrays.files}
    except Exception:  # numpy and zipfile raise many kinds
        return None
    return None


def file_version_key(path: str) -> str:
    """Returns size and modification time of a file, or nothing where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _place(kind: str, shard: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = shard if "://" in shard else str(Path(shard).resolve())
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache / "parti-toolkit" / "shards" / f"{digest}.{kind}.npz"
