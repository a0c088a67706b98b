"""JPEG without its annotations (ITU-T T.81, annex B).

Of the segments before the first scan those stay that decoding needs: tables, frame headers, and the color markers
(JFIF, Adobe). Data between markers is skipped, as in Pillow and libjpeg.
"""

import re

from vqgan.data.images.formats.refused import RefusedImageError

_MOST_MARKERS = 100_000
_LARGEST_TABLES = 1 << 20
"""Bytes of all tables and headers before the first scan: some hundred are usual."""
_LARGEST_EXIF = 1 << 20
_SCAN, _JFIF, _EXIF, _ADOBE, _COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
_ALONE = (*range(0xD0, 0xDA), 0xC8, *range(0xF0, 0xFE))
"""Markers that have no content: restarts, begin and end, reserved ones."""
_FILL = re.compile(rb"\xff+")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def essential(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns the file without annotations; its Exif data and XMP data, empty where it has none.

    Raises RefusedImageError where there are more markers or tables than any writer makes.
    """
    kept, exif, xmp = [b"\xff\xd8"], b"", b""
    at, size = 2, 0
    for _ in range(_MOST_MARKERS):
        at = data.find(b"\xff", at)
        fill = _FILL.match(data, at) if at >= 0 else None
        if fill is None or fill.end() >= len(data):
            return b"".join(kept), exif, xmp  # the decoder misses the scan
        marker, at = data[fill.end()], fill.end() + 1
        if marker == 0 or marker in _ALONE:
            continue
        if marker == _SCAN:
            return b"".join([*kept, data[at - 2 :]]), exif, xmp
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        content = data[at + 2 : end]
        if marker == _EXIF and content.startswith(b"Exif\0\0") and len(exif) < _LARGEST_EXIF:
            exif += content if not exif else content[6:]
        elif marker == _EXIF and content.startswith(_XMP):
            xmp = content[len(_XMP) :]
        elif _is_needed(marker):
            kept.append(data[at - 2 : end])
            size += end - at
            if size > _LARGEST_TABLES:
                raise RefusedImageError(f"a JPEG with more than {_LARGEST_TABLES:,} bytes of tables")
        at = end
    raise RefusedImageError(f"a JPEG with more than {_MOST_MARKERS:,} markers before its first scan")


def _is_needed(marker: int) -> bool:
    is_annotation = 0xE0 <= marker <= 0xEF or marker == _COMMENT
    return not is_annotation or marker in (_JFIF, _ADOBE)
