"""Encoded images that cost far more than their bytes: a corpus that is made when it is needed.

To add one is a line in BOMBS: its name, what makes it, and part of what is said of it, or SHOWN where the image is
good and only what surrounds it is not.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

SHOWN = "(16, 16)"
SMALL = Image.new("RGB", (16, 16), (10, 200, 30))


def encode(kind: str, image: Image.Image = SMALL, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(*chunks: bytes) -> bytes:
    data = encode("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg(*between: bytes) -> bytes:
    data = encode("JPEG")
    return data[:2] + b"".join(between) + data[2:]


def gif(between: bytes) -> bytes:
    data = encode("GIF", SMALL.convert("P"))
    end = 13 + (3 << ((data[10] & 7) + 1))
    return data[:end] + between + data[end:]


def directory(entries: int, size: int) -> bytes:
    """A directory of Exif whose entries all point at the same bytes."""
    head = b"II*\0" + struct.pack("<LH", 8, entries)
    return head + b"".join(struct.pack("<HHLL", 1000 + n, 7, size, 8) for n in range(entries)) + bytes(4 + size)


def avif() -> bytes:
    bomb = directory(60_000, 1 << 20)
    mild = bomb[: len(directory(60_000, 4))]
    mild = directory(60_000, 4)[: len(mild)] + bytes(len(bomb) - len(mild))
    return encode("AVIF", exif=b"Exif\0\0" + mild).replace(mild, bomb)


def in_segments(exif: bytes) -> list[bytes]:
    return [segment(0xE1, b"Exif\0\0" + exif[at : at + 65_000]) for at in range(0, len(exif), 65_000)]


def jpeg2000(
    *,
    layers: int = 1,
    precincts: int | None = None,
    tile: int = 4000,
    levels: int = 5,
    block: int = 4,
    components: int = 1,
    side: int = 4000,
) -> bytes:
    """A code stream of some hundred bytes; sizes of precincts and blocks as powers of two."""
    sizes = struct.pack(">HLLLLLLLLH", 0, side, side, 0, 0, tile, tile, 0, 0, components) + b"\7\1\1" * components
    own = b"" if precincts is None else bytes([precincts * 17] * (levels + 1))
    coding = bytes([len(own) > 0, 0]) + struct.pack(">HB", layers, 0) + bytes([levels, block, block, 0, 1]) + own
    quantization = b"\x40" * (3 * levels + 2)
    stream = b"\xff\x4f" + segment(0x51, sizes) + segment(0x52, coding) + segment(0x5C, quantization)
    body = bytes(200)
    return stream + b"\xff\x90" + struct.pack(">HHLBB", 10, 0, 14 + len(body), 0, 1) + b"\xff\x93" + body + b"\xff\xd9"


def ico(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    image = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\0\0\1\0\1\0\0\0\0\0" + struct.pack("<HHLL", 1, 32, len(image), 22) + image


def tiled_tiff() -> bytes:
    """An image of 16 x 16 pixels in one tile of 40,000 x 40,000."""
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, 40_000), (323, 40_000)]
    content = zlib.compress(bytes(40_000 * 40_000 // 100))
    entries = [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags]
    place = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries += [struct.pack("<HHLL", 324, 4, 1, place), struct.pack("<HHLL", 325, 4, 1, len(content))]
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(entries) + bytes(4) + content


_PACKED = zlib.compress(bytes(1 << 26))

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG, a profile of 64 MB": (lambda: png(chunk(b"iCCP", b"p\0\0" + _PACKED)), SHOWN),
    "PNG, 50 texts of 64 MB": (lambda: png(*[chunk(b"zTXt", b"k\0\0" + _PACKED)] * 50), SHOWN),
    "PNG, an international text of 64 MB": (lambda: png(chunk(b"iTXt", b"k\0\1\0\0\0" + _PACKED)), SHOWN),
    "PNG, Exif as a text of 64 MB": (lambda: png(chunk(b"zTXt", b"Raw profile type exif\0\0" + _PACKED)), SHOWN),
    "PNG, Exif entries on each other": (lambda: png(chunk(b"eXIf", directory(60_000, 1 << 20))), SHOWN),
    "PNG, malformed annotations": (lambda: png(*(chunk(k, b"?") for k in (b"pHYs", b"gAMA", b"iCCP", b"acTL"))), SHOWN),
    "PNG, a wrong checksum of a comment": (lambda: png(chunk(b"tEXt", b"a\0b")[:-1] + b"?"), SHOWN),
    "PNG, a million chunks": (lambda: png(chunk(b"teXt", b"") * 1_000_001), "more than 1,000,000 chunks"),
    "GIF, comments of 25 MB": (lambda: gif(b"\x21\xfe" + (b"\xff" + b"c" * 255) * 100_000 + b"\0"), SHOWN),
    "GIF, endless comments": (lambda: gif(b"\x21\xfe" + (b"\xff" + b"c" * 255) * 300_000 + b"\0"), "200,000 blocks"),
    "GIF, endless extensions": (lambda: gif(b"\x21\xfe\1c\0" * 500_000), "200,000 blocks"),
    "GIF, 20 MB between blocks": (lambda: gif(b"\1" * 20_000_000), SHOWN),
    "GIF, no frame": (
        lambda: encode("GIF", SMALL.convert("P"))[:13] + b"\x21\xfe\1c\0" * 1000,
        "cut off in its header",
    ),
    "JPEG, Exif entries on each other": (lambda: jpeg(*in_segments(directory(60_000, 1 << 20))), SHOWN),
    "JPEG, one Exif segment": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + directory(2700, 30_000)[:65_000])), SHOWN),
    "JPEG, a million comments": (lambda: jpeg(segment(0xFE, b"") * 1_000_000), "more than 100,000 markers"),
    "JPEG, filled with 50 MB": (lambda: jpeg(b"\xff" * 50_000_000), SHOWN),
    "JPEG, escapes between markers": (lambda: jpeg(b"\xff\0" * 10_000_000), "more than 100,000 markers"),
    "JPEG, a profile of 16 MB": (lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 255), SHOWN),
    "JPEG, tables of 32 MB": (lambda: jpeg(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 500), "bytes of tables"),
    "JPEG, no scan": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 5_000_000, "more than 100,000 markers"),
    "TIFF, entries on each other": (lambda: directory(60_000, 1 << 20), "more steps to read"),
    "TIFF, a tile of 1.6 gigapixels": (tiled_tiff, "too large: 40000x40000"),
    "WebP, Exif entries on each other": (lambda: encode("WEBP", exif=directory(60_000, 1 << 20)), SHOWN),
    "AVIF, Exif entries on each other": (avif, "Exif entries"),
    "JPEG 2000, precincts of a pixel": (lambda: jpeg2000(precincts=0, levels=0), "precincts"),
    "JPEG 2000, precincts of two pixels": (lambda: jpeg2000(precincts=1), "precincts"),
    "JPEG 2000, 65,535 layers": (lambda: jpeg2000(layers=65_535, precincts=7), "packets"),
    "JPEG 2000, small tiles": (lambda: jpeg2000(tile=16), "tiles"),
    "JPEG 2000, small code blocks": (lambda: jpeg2000(block=0), "code blocks"),
    "JPEG 2000, 16,384 components": (lambda: jpeg2000(components=16_384), "components"),
    "JPEG 2000, 32 levels": (lambda: jpeg2000(levels=32, side=16, tile=16), SHOWN),
    "JPEG 2000, 17 code streams": (lambda: jpeg2000(side=16) * 17, "code streams"),
    "ICO, a PNG of 169 megapixels": (lambda: ico(13_000, 13_000), "too large: 13000x13000"),
    "ICO, 65,535 images": (lambda: b"\0\0\1\0\xff\xff" + bytes(16 * 65_535), "an ICO file of 65,535 images"),
    "a line of 100,000 pixels": (lambda: encode("PNG", Image.new("L", (100_000, 1))), "too long: a side of 100000x1"),
    "a column of a million pixels": (lambda: encode("PNG", Image.new("L", (1, 1_000_000))), "too long"),
}
