"""PNG without its ancillary chunks (PNG specification, third edition, section 11).

A profile or text that is large or malformed is no reason to lose the image, and none of it is unpacked.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from vqgan.data.images.formats.refused import RefusedImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MOST_CHUNKS = 1_000_000
_LARGEST_TEXT = 1 << 20
"""Bytes of Exif or XMP data that are looked through for an orientation; 64 kB is what a JPEG can hold."""
_RAW_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_LATER = re.compile(rb"[a-z]")


def essential(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns the file without ancillary chunks but for transparency; its Exif data and XMP data, empty where it has
    none.

    Raises RefusedImageError for a file of millions of chunks.
    """
    kept, exif, xmp = [SIGNATURE], b"", b""
    for kind, start, end in _chunks(data):
        if kind in _KEPT or not _LATER.match(kind):  # the decoder says what it thinks of unknown critical ones
            kept.append(data[start:end])
        elif kind == b"eXIf" and not exif:
            exif = data[start + 8 : end - 4][:_LARGEST_TEXT]
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and not (exif and xmp):
            keyword = data[start + 8 : start + 8 + 80].partition(b"\0")[0]
            if keyword == _RAW_EXIF and not exif:
                exif = from_hexadecimal(_text(kind, data[start + 8 : end - 4]))
            elif keyword == _XMP and not xmp:
                xmp = _text(kind, data[start + 8 : end - 4])
    return b"".join(kept), exif, xmp


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of every chunk up to the image's end; the last may be cut off."""
    at = len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        if at >= len(data):
            return
        (length,) = struct.unpack(">L", data[at : at + 4].ljust(4, b"\0"))
        kind, end = data[at + 4 : at + 8], at + 12 + length
        yield kind, at, min(end, len(data))
        if kind == b"IEND":
            return
        at = end
    raise RefusedImageError(f"a PNG of more than {_MOST_CHUNKS:,} chunks")


def _text(kind: bytes, content: bytes) -> bytes:
    """Returns the text of a chunk, unpacked up to a limit; empty where that fails."""
    _, _, rest = content.partition(b"\0")
    if kind == b"tEXt":
        return rest[:_LARGEST_TEXT]
    is_packed = kind == b"zTXt" or rest[:1] == b"\1"
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    if not is_packed:
        return packed[:_LARGEST_TEXT]
    try:
        return zlib.decompressobj().decompress(packed, _LARGEST_TEXT)
    except zlib.error:
        return b""


def from_hexadecimal(text: bytes) -> bytes:
    """Exif data as ImageMagick writes it: a name, a length, and lines of digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
