"""The orientation in Exif or XMP data, read without anything else of them.

Pillow's own reader copies what every entry of a directory points at: 65,000 entries that all point at one megabyte
take 65 GB.
"""

import re
import struct

from vqgan.data.images.formats.refused import RefusedImageError

_ORIENTATION = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "L"}
"""Types of entries that hold whole numbers, as `struct` has them."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of a value by its type."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_START = re.compile(rb"II\*\0|MM\0\*")
_MOST_BYTES = 1 << 26
"""That entries of one file may point at: 64 MB is more than any thumbnail."""
_MOST_DIRECTORIES = 1000


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8; 1, upright, where nothing else can be read."""
    start = _START.search(exif, 0, 64)
    entries = dict(_entries(exif[start.start() :])) if start is not None else {}
    if _ORIENTATION in entries:
        return entries[_ORIENTATION][1]
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found is not None else 1


def check_directories(data: bytes) -> None:
    """Raises RefusedImageError where entries of Exif directories in a file point at more than any camera writes."""
    total = 0
    for count, start in enumerate(_START.finditer(data)):
        total += sum(size for _, (size, _) in _entries(data[start.start() : start.start() + _LONGEST_DIRECTORY]))
        if total > _MOST_BYTES or count > _MOST_DIRECTORIES:
            raise RefusedImageError(f"its Exif entries point at more than {_MOST_BYTES:,} bytes")


_LONGEST_DIRECTORY = 1 << 20


def _entries(tiff: bytes) -> list[tuple[int, tuple[int, int]]]:
    """By tag: the size of what it holds in bytes, and its value where that is a single whole number, else 1."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        found = []
        for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
            tag, kind, number = struct.unpack_from(order + "HHL", tiff, at)
            value = 1
            if kind in _NUMBERS and number == 1:
                (value,) = struct.unpack_from(order + _NUMBERS[kind], tiff, at + 8)
            found.append((tag, (_SIZES.get(kind, 1) * number, value)))
        return found
    except struct.error:
        return []
