"""The sizes of the images in an ICO file, each a PNG or a bitmap with a header of its own.

What the file's directory says of them need not be true, and Pillow believes the image itself.
"""

import struct
from collections.abc import Iterator

from vqgan.data.images.formats.png import SIGNATURE
from vqgan.data.images.formats.refused import RefusedImageError

_MOST_IMAGES = 256


def sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields width and height of every image, by its own header; none in files of other formats.

    Raises RefusedImageError where there are too many.
    """
    if not data.startswith(b"\0\0\1\0"):
        return
    (count,) = struct.unpack_from("<H", data.ljust(6, b"\0"), 4)
    if count > _MOST_IMAGES:
        raise RefusedImageError(f"an ICO file of {count:,} images")
    for number in range(count):
        entry = data[6 + 16 * number : 22 + 16 * number]
        if len(entry) < 16:
            return
        (start,) = struct.unpack_from("<L", entry, 12)
        head = data[start : start + 24].ljust(24, b"\0")
        if head.startswith(SIGNATURE):
            yield struct.unpack_from(">LL", head, 16)
        elif int.from_bytes(head[:4], "little") >= 40:
            width, height = struct.unpack_from("<ll", head, 4)
            yield max(1, abs(width)), max(1, abs(height))
