"""What a safetensors file says that it holds, read and bounded before anything is loaded.

The library itself checks that the tensors fill the file without overlap; how many there are is up to the file, and
each of them costs it time.
"""

import json
import struct
from math import prod
from pathlib import Path

from vqgan.system.bounded_file import RefusedFileError, open_regular

_LONGEST, _MOST_TENSORS = 16 << 20, 100_000
"""Bytes of a header, and tensors in it. The header of a network of 2,000 tensors has 300 kB."""


class WeightsHeaderError(ValueError):
    """A file that is no safetensors file, or none of a network; the message is one line without the file's name."""


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file. Raises WeightsHeaderError, and OSError where it cannot be read."""
    try:
        file = open_regular(path)
    except RefusedFileError as error:
        raise WeightsHeaderError(f"is no weights file: {error}") from None
    with file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= path.stat().st_size - 8:
            raise WeightsHeaderError("is damaged or truncated: its header has no length")
        if length > _LONGEST:
            raise WeightsHeaderError(f"has a header of {length} bytes, at most {_LONGEST} are read")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise WeightsHeaderError(
                f"is damaged or truncated: its header is no JSON ({' '.join(str(error).split())[:80]})"
            ) from None
    if not isinstance(header, dict):
        raise WeightsHeaderError("is damaged or truncated: its header is no mapping")
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        raise WeightsHeaderError(f"holds {len(header)} tensors, at most {_MOST_TENSORS} are read")
    return {name: _shape(name, entry) for name, entry in header.items()}


def stored_sizes(path: Path) -> tuple[int, int]:
    """How many tensors a file holds, and how many numbers. Raises what `stored_shapes` raises."""
    shapes = stored_shapes(path).values()
    return len(shapes), sum(map(prod, shapes))


def _shape(name: str, entry: object) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise WeightsHeaderError(f"is damaged: {name[:80]!r} has no possible shape")
    if len(shape) > 16:
        raise WeightsHeaderError(f"is damaged: {name[:80]!r} has {len(shape)} axes")
    return tuple(shape)
