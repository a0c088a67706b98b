"""The first frame of a GIF without comments (GIF89a specification).

Pillow gathers comments in Python, each time copying what it has: endless ones take minutes.
"""

import re

from vqgan.data.images.formats.refused import RefusedImageError

_MOST_BLOCKS = 200_000
"""Blocks of extensions before the first frame, of up to 255 bytes each."""
_HEADER = 13
_EXTENSION, _FRAME, _END, _CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_NEXT = re.compile(rb"[\x21\x2c\x3b]")


def first_frame(data: bytes) -> bytes:
    """Returns the file without what stands before its first frame, but for the control of that frame.

    Raises RefusedImageError where that never ends.
    """
    palette = 3 << ((data[10] & 7) + 1) if len(data) > _HEADER and data[10] & 0x80 else 0
    at = _HEADER + palette
    head, control = data[:at], b""
    blocks = 0
    while (found := _NEXT.search(data, at)) is not None:
        kind, at = found[0][0], found.start()
        if kind == _FRAME:
            return head + control + data[at:]
        if kind == _END:
            break
        begin, at = at, at + 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
            blocks += 1
            if blocks > _MOST_BLOCKS:
                raise RefusedImageError(f"a GIF with more than {_MOST_BLOCKS:,} blocks before its first frame")
        at += 1
        blocks += 1
        if data[begin + 1 : begin + 2] == bytes([_CONTROL]):
            control = data[begin:at]
    return head + bytes([_END])  # the decoder misses the frame
