"""What of an encoded image reaches the decoder: what the pixels depend on, and nothing else.

Pillow reads all of a file's annotations (profiles, texts, comments, thumbnails) in Python when it opens the file, and
refuses the image for an odd one among them. A file can be made of them so that this takes minutes or gigabytes. So they
are left out before; the orientation is read here.
"""

from dataclasses import dataclass

from vqgan.data.images.formats import gif, jpeg, jpeg2000, png
from vqgan.data.images.formats.exif import check_directories


@dataclass(frozen=True)
class Essential:
    """An encoded image without its annotations, and those of them that may hold its orientation."""

    data: bytes
    exif: bytes = b""
    xmp: bytes = b""


def essential(data: bytes) -> Essential:
    """Returns what the pixels of an encoded image need, in the same format; other formats as they are.

    Raises RefusedImageError for what would cost too much. Malformed data is left to the decoder.
    """
    if data.startswith(png.SIGNATURE):
        return Essential(*png.essential(data))
    if data.startswith(b"\xff\xd8\xff"):
        return Essential(*jpeg.essential(data))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Essential(gif.first_frame(data))
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        check_directories(data)
    elif data.startswith((jpeg2000.START, b"\0\0\0\x0cjP  ")):
        jpeg2000.check(data)
    return Essential(data)
