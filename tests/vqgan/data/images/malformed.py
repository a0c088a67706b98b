"""Malformed images and captions: real ones of every format and mode, damaged as (seed, number) say."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from vqgan.data.sources.shapes import Shapes, ShapesConfig

Rng = np.random.Generator

_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def malformed_image(seed: int, number: int) -> bytes:
    """A damaged image, sometimes one that still opens."""
    rng = np.random.default_rng((seed, number))
    whole = well_formed()
    data = whole[int(rng.integers(len(whole)))]
    if rng.random() < 0.1:
        return _CRAFTED[int(rng.integers(len(_CRAFTED)))](rng)
    for _ in range(int(rng.integers(1, 4))):
        data = _DAMAGES[int(rng.integers(len(_DAMAGES)))](data, rng)
    return data


def malformed_caption(seed: int, number: int) -> bytes:
    """What may stand in a caption's file: mostly text, not always UTF-8."""
    rng = np.random.default_rng((seed, number, 1))
    text = f"caption {number} of an image \N{HEBREW LETTER ALEF} \N{GRINNING FACE}"
    choice = int(rng.integers(12))
    odd = {
        0: "",
        1: " \n\t\r\n",
        2: f"\0{text}\0\0",
        3: f"\N{RIGHT-TO-LEFT OVERRIDE}{text}\N{LEFT-TO-RIGHT MARK}\N{ZERO WIDTH JOINER}",
        4: "a\N{COMBINING ACUTE ACCENT}" * 500,
        5: "\N{ZERO WIDTH NO-BREAK SPACE}" + text,
        6: f"{text}\x1b[2J\x07\x85\u2028",
    }
    if choice in odd:
        return odd[choice].encode()
    if choice == 7:
        return text.encode("utf-16")
    if choice == 8:
        return b"lone surrogate \xed\xa0\x80" + text.encode()
    if choice == 9:
        return (text * 25_000 if rng.random() < 0.1 else text * 100).encode()  # above 1 MB, and 4 kB
    if choice == 10:
        return _change_bytes(text.encode(), rng)
    return text.encode()


@cache
def well_formed() -> list[bytes]:
    """Images of the embedded data set in every format and mode that Pillow writes and this toolkit reads."""
    source = Shapes(ShapesConfig(), "train", 40)
    color, other = source[0].image, source[1].image
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "a description" * 20})
    exif.get_ifd(0x8769)[0x9286] = b"a comment" * 20
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rich = {"exif": exif, "icc_profile": profile}
    deep = Image.fromarray(np.asarray(color.convert("L")).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(color.convert("L")).astype(np.float32))
    lab = ImageCms.profileToProfile(
        color, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    animated = {"save_all": True, "append_images": [other, color]}
    written: list[bytes] = []

    def save(image: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        image.copy().save(file, kind, **options)  # Pillow keeps an encoder's options in the image
        written.append(file.getvalue())

    for mode in ("RGB", "L", "CMYK"):
        save(color.convert(mode), "JPEG")
    save(color, "JPEG", progressive=True, **rich)
    save(color, "MPO", save_all=True, append_images=[other.copy()])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        save(color.convert(mode), "PNG")
    save(color, "PNG", **rich)
    save(deep, "PNG")
    save(color.convert("P"), "PNG", transparency=1)
    save(color, "PNG", **animated)
    save(color, "GIF", **animated)
    for mode in ("1", "L", "RGB", "RGBA", "CMYK"):
        save(color.convert(mode), "TIFF")
    for image in (deep, real, lab):
        save(image, "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        save(color, "TIFF", compression=compression)
    save(color.convert("1"), "TIFF", compression="group4")
    save(color, "TIFF", save_all=True, append_images=[other], icc_profile=profile)
    save(color, "WEBP", **rich)
    save(color.convert("RGBA"), "WEBP", lossless=True)
    save(color, "WEBP", **animated)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        save(color.convert(mode), "BMP")
    for mode in ("1", "L", "RGB"):
        save(color.convert(mode), "PPM")
    save(color, "ICO", sizes=[(16, 16), (32, 32)])
    save(color, "JPEG2000")
    save(color, "AVIF", speed=10)
    save(color, "QOI")
    written.append(b"P3\n4 4\n15\n" + b"1 2 3 " * 16)
    return written


# --- damage to any bytes --------------------------------------------------------------------------------------------


def _change_bytes(data: bytes, rng: Rng) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    count = int(rng.integers(1, 9))
    changed[rng.integers(0, len(changed), count)] = rng.integers(0, 256, count)
    return changed.tobytes()


def _change_header(data: bytes, rng: Rng) -> bytes:
    return _change_bytes(data[:120], rng) + data[120:]


def _flip_bit(data: bytes, rng: Rng) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]


def _cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(1, len(data) + 1))]


def _cut_out(data: bytes, rng: Rng) -> bytes:
    start, end = sorted(int(place) for place in rng.integers(0, len(data), 2))
    return data[:start] + data[end:]


def _insert(data: bytes, rng: Rng) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + rng.bytes(int(rng.integers(1, 2000))) + data[place:]


def _repeat(data: bytes, rng: Rng) -> bytes:
    start, end = sorted(int(place) for place in rng.integers(0, len(data), 2))
    return data[:start] + data[start:end] * int(rng.integers(2, 30)) + data[end:]


def _extreme_number(data: bytes, rng: Rng) -> bytes:
    reach = min(len(data), 200) if rng.random() < 0.7 else len(data)
    place = int(rng.integers(reach))
    number = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    code = ("<I", ">I", "<H", ">H")[int(rng.integers(4))]
    raw = struct.pack(code, number & (0xFFFFFFFF if code[1] == "I" else 0xFFFF))
    return data[:place] + raw + data[place + len(raw) :]


def _graft(data: bytes, rng: Rng) -> bytes:
    other = well_formed()[int(rng.integers(len(well_formed())))]
    return data[: int(rng.integers(1, len(data) + 1))] + other[int(rng.integers(len(other))) :]


_DAMAGES: tuple[Callable[[bytes, Rng], bytes], ...] = (
    _change_bytes,
    _change_header,
    _flip_bit,
    _cut,
    _cut_out,
    _insert,
    _repeat,
    _extreme_number,
    _graft,
)


# --- made to hurt ---------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, bits: int = 8, color: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def _huge_png(rng: Rng) -> bytes:
    sides = (1, 9_000, 70_000, 2**31 - 1)
    width, height = (sides[int(side)] for side in rng.integers(0, len(sides), 2))
    return _png(width, height, _chunk(b"IDAT", zlib.compress(bytes(1000))))


def _swollen_chunk(rng: Rng) -> bytes:
    """Text or a color profile of 64 MB in a few kilobytes."""
    packed = _swollen_bytes()
    kinds = (_chunk(b"zTXt", b"a\0\0" + packed), _chunk(b"iCCP", b"a\0\0" + packed))
    extra = (*kinds, _chunk(b"iTXt", b"a\0\1\0\0\0" + packed))[int(rng.integers(3))]
    return _png(4, 4, extra, _chunk(b"IDAT", zlib.compress(bytes(4 * 13))))


@cache
def _swollen_bytes() -> bytes:
    return zlib.compress(bytes(2**26), 9)


def _huge_jpeg(rng: Rng) -> bytes:
    data = well_formed()[int(rng.integers(4))]
    encode = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    height, width = (int(side) for side in rng.choice([1, 2_000, 11_000, 65_535], 2))
    return data[: encode + 5] + struct.pack(">HH", height, width) + data[encode + 9 :]


def _many_scans(rng: Rng) -> bytes:
    data = well_formed()[3]
    scan, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[scan:end] * int(rng.integers(100, 3000)) + data[end:]


def _tiff(entries: list[tuple[int, int, int, int]], next_directory: int = 0, rest: bytes = b"") -> bytes:
    raw = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + raw + struct.pack("<I", next_directory) + rest


_GRAY_TIFF = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 200), (279, 4, 1, 64)]


def _endless_tiff(rng: Rng) -> bytes:
    """Directories in a circle, sub-directories that contain themselves, and counts beyond the file."""
    extra = [(34665, 4, 1, 8), (330, 4, 1, 8), (34853, 13, 1, 8), (40965, 4, 1, 8)]
    extra += [(270, 2, 0xFFFFFFFF, 8), (700, 1, 0x7FFFFFFF, 0), (34675, 7, 0x0FFFFFFF, 100), (330, 4, 0x3FFFFFFF, 8)]
    return _tiff([*_GRAY_TIFF, extra[int(rng.integers(len(extra)))]], next_directory=8, rest=rng.bytes(200))


def _many_tags(rng: Rng) -> bytes:
    tags = [
        (int(tag), int(rng.integers(1, 14)), int(rng.integers(1, 2**32)), 8) for tag in rng.integers(1, 65535, 3000)
    ]
    return _tiff([*_GRAY_TIFF, *tags], rest=rng.bytes(100))


def _circular_exif(rng: Rng) -> bytes:
    """A good JPEG whose EXIF data lead back to themselves."""
    block = b"Exif\0\0" + _endless_tiff(rng)
    data = well_formed()[0]
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def _broken_profile(rng: Rng) -> bytes:
    """A good JPEG with a color profile in 40 pieces, each of noise."""
    data, pieces = well_formed()[0], b""
    for number in range(40):
        block = b"ICC_PROFILE\0" + bytes([number + 1, 40]) + rng.bytes(1000)
        pieces += b"\xff\xe2" + struct.pack(">H", len(block) + 2) + block
    return data[:2] + pieces + data[2:]


def _huge_others(rng: Rng) -> bytes:
    return (
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
        b"P6\n99999 99999\n255\n" + bytes(100),
        b"P3\n9000 9000\n255\n" + b"1 " * 5000,
        b"P6\n9000 9000\n1023\n" + bytes(5000),
        b"P5\n" + b"9" * 300 + b" 1\n255\n",
        b"qoif" + struct.pack(">IIBB", 9_000, 9_000, 3, 0) + b"\xfd" * 5000,
        b"BM"
        + struct.pack("<IHHI", 2000, 0, 0, 1078)
        + struct.pack("<IiiHHIIiiII", 40, 9000, -9000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(2000),
        b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(40),
        b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0" + struct.pack("<II", 500, 22) + _huge_png(rng),
        b"",
        b"\0" * 1000,
        rng.bytes(1000),
    )[int(rng.integers(13))]


_CRAFTED: tuple[Callable[[Rng], bytes], ...] = (
    _huge_png,
    _swollen_chunk,
    _huge_jpeg,
    _many_scans,
    _endless_tiff,
    _many_tags,
    _circular_exif,
    _broken_profile,
    _huge_others,
)
