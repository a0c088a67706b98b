"""Any image as an upright RGB `PIL.Image`, or an UnusableSample that says why not.

What has a meaning is converted: transparency is laid on a background color, 12, 16 and 32 bits are scaled (Pillow
alone would clip them) to 8, CMYK, YCbCr, HSV and LAB become RGB, the EXIF orientation is applied, an animation gives
its first frame. Embedded color profiles (ICC) are not applied, as is usual for training data.

Nothing here depends on Pillow's global settings, and only raster formats are tried: an EPS file would start
Ghostscript on text that came from somewhere. Whatever the bytes are, time and memory are bounded: annotations never
reach Pillow (`image_files`), and the limits below refuse by the header, so that the worst image takes seconds, some
20 on a slow core.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError
from pydantic import AfterValidator

from vqgan.data.images.formats import ico, png
from vqgan.data.images.formats.budget import BudgetedFile
from vqgan.data.images.formats.essential import Essential, essential
from vqgan.data.images.formats.exif import orientation
from vqgan.data.images.formats.refused import RefusedImageError
from vqgan.data.source import UnusableSample
from vqgan.system.bounded_file import RefusedFileError, read_bounded

MAX_PIXELS = 100_000_000
"""Images above 100 megapixels are refused by their header: 300 MB of memory each is a mistake or an attack."""
MAX_SIDE = 65_535
"""Pixels of a side, as in a JPEG: what is longer takes gigabytes to resize, however narrow it is."""
MAX_SLOW_PIXELS = 16_000_000
"""The same for what is decoded at about a megapixel a second: JPEG 2000, and formats that Pillow reads in Python."""
MAX_BYTES = 2**30
"""Larger files are refused unread: no image of MAX_PIXELS needs more."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "DIB")
"""Pillow's names of the formats that are tried, the commonest first; an old Pillow lacks AVIF."""

_SLOW_CODECS = {"jpeg2k", "qoi", "ppm", "ppm_plain", "bmp_rle"}
"""Pillow's names of the decoders that MAX_SLOW_PIXELS is for; ordinary PPM and BMP files are "raw"."""
_MAX_SCANNED_PIXELS = 5_000_000_000
"""Pixels times scans of a progressive JPEG, each scan a pass over the image: 10 to 14 are usual, any number legal."""

_BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT = 258, 262, 322, 323
"""Tags of TIFF."""

Rgb = tuple[int, int, int]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts the image upright."""


def parse_color(text: str) -> Rgb:
    """`#ffffff`, `#fff`, `white` or `rgb(255, 255, 255)` as (red, green, blue). Raises ValueError for anything else."""
    try:
        color = ImageColor.getrgb(text)
    except ValueError:
        color = (0, 0, 0, 0)
    if len(color) != 3:
        raise ValueError(f"not an opaque color: {text!r}; write '#rrggbb' (in quotes) or a name such as white")
    return color


def _check_color(text: str) -> str:
    parse_color(text)
    return text


Color = Annotated[str, AfterValidator(_check_color)]
"""A config field that holds a color as text; `parse_color` reads it."""


def decode_image(
    source: bytes | Path | Image.Image, name: str, background: Rgb = (255, 255, 255), *, min_side: int | None = None
) -> Image.Image:
    """Returns an encoded image, a file or a PIL image as an upright RGB image that owns its pixels.

    `background` shows through where the image is transparent. `min_side`: a JPEG whose shorter side is twice that
    or more comes at a half, a quarter or an eighth of its size, as long as the shorter side keeps `min_side` pixels;
    that saves most of the time of a large photograph. Raises UnusableSample(name, cause) for whatever cannot be
    decoded; a PIL image given as `source` stays open and unchanged.
    """
    try:
        with _quiet_pillow():
            if isinstance(source, Image.Image):
                pil_image = _decode(source, background, _essential_of(source))
                return pil_image.copy() if pil_image is source else pil_image
            data = source if isinstance(source, bytes) else _read(source)
            if not data:
                raise RefusedImageError("the file is empty (0 bytes)")
            for width, height in ico.sizes(data):  # Pillow decodes one when it opens the file
                _refuse_size(width, height)
            needed = essential(data)
            file = BudgetedFile(needed.data)
            with Image.open(file, formats=_openable_formats()) as image:
                file.opened()
                _refuse_slow(image, needed.data)
                if min_side is not None:
                    image.draft(None, (min_side, min_side))  # only JPEG takes notice
                return _decode(image, background, needed)
    except RefusedImageError as refusal:
        raise UnusableSample(name, str(refusal)) from None
    except Image.DecompressionBombError:
        raise UnusableSample(name, f"too large: more than the limit of {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS[:6])
        raise UnusableSample(name, f"not an image in a known format ({known}, ...), or cut off in its header") from None
    except FileNotFoundError:
        path = f": {str(source)!r}" if isinstance(source, Path) and str(source) != name else ""
        raise UnusableSample(name, f"the file is missing{path}") from None
    except Exception as error:
        # Malformed bytes make Pillow's parsers raise nearly anything: OSError, SyntaxError, ValueError, struct.error,
        # EOFError, MemoryError, zlib.error, OverflowError, TypeError, IndexError, ...
        cause = " ".join(str(error).split())
        if " " not in cause:  # a KeyError's key, or nothing
            cause = f"{type(error).__name__} {cause}".rstrip()
        raise UnusableSample(name, f"cannot be decoded: {cause}") from None


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RefusedImageError(f"too large: a file of {size:,} bytes is more than the limit of {MAX_BYTES:,}")
    try:
        return read_bounded(path, MAX_BYTES)
    except RefusedFileError as refusal:
        raise RefusedImageError(f"cannot be decoded: {refusal}") from None


@functools.cache
def _openable_formats() -> tuple[str, ...]:
    Image.init()  # makes Pillow load its list of formats; it adds nothing the second time
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignore the warnings of Pillow's own modules (large image, odd EXIF): here they are decided or harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _refuse_slow(image: Image.Image, data: bytes) -> None:
    """Refuse by the header what would take minutes to decode."""
    width, height = image.size
    _refuse_size(width, height)
    if width * height > MAX_SLOW_PIXELS and any(tile[0] in _SLOW_CODECS for tile in getattr(image, "tile", ())):
        raise RefusedImageError(
            f"too large for its slow format: {width}x{height} is more than the limit of {MAX_SLOW_PIXELS:,} pixels"
        )
    _refuse_size(*_tile_size(image))
    if image.info.get("progressive"):
        scans = data.count(b"\xff\xda")
        if width * height * scans > _MAX_SCANNED_PIXELS:
            raise RefusedImageError(f"a progressive JPEG of {width}x{height} pixels in {scans} scans; save it again")


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Of a TIFF the tiles that it is decoded in, which may be larger than the image."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (1, 1)


def _refuse_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise RefusedImageError(f"an image of {width}x{height} pixels shows nothing")
    if max(width, height) > MAX_SIDE:
        raise RefusedImageError(f"too long: a side of {width}x{height} is more than the limit of {MAX_SIDE:,} pixels")
    if width * height > MAX_PIXELS:
        raise RefusedImageError(f"too large: {width}x{height} is more than the limit of {MAX_PIXELS:,} pixels")


def _decode(image: Image.Image, background: Rgb, needed: Essential) -> Image.Image:
    # 1. The header alone is enough to refuse.
    _refuse_size(*image.size)
    transparent = _transparent_value(image)
    # 2. Pixels; formats that turn the image themselves (TIFF) take the orientation out of the EXIF data here.
    image.load()
    turn = _TURNS.get(_orientation(image, needed))
    # 3. Colors, then upright.
    rgb = _to_rgb(image, transparent, background)
    return rgb.transpose(turn) if turn is not None else rgb


def _orientation(image: Image.Image, needed: Essential) -> int:
    """Returns the EXIF orientation; unreadable EXIF data around a good image is no reason to lose the image."""
    found = _essential_of(image)
    return orientation(needed.exif or found.exif, needed.xmp or found.xmp)


def _essential_of(image: Image.Image) -> Essential:
    """Returns the orientation metadata of an open image, in the form of a file."""
    exif = image.info.get("exif", b"")
    if not exif and "Raw profile type exif" in image.info:
        exif = png.from_hexadecimal(str(image.info["Raw profile type exif"]).encode("ascii", "replace"))
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    texts = (text.encode("utf-8", "replace") if isinstance(text, str) else text for text in (exif, xmp))
    return Essential(b"", *(text if isinstance(text, bytes) else b"" for text in texts))


def _transparent_value(image: Image.Image) -> Any:
    """Returns the gray value, color or palette entries that count as transparent, in the scale of the decoded pixels.

    A PNG gives it at its own bit depth, Pillow scales the pixels to 8 bits but leaves this value as it was.
    """
    value = image.info.get("transparency")
    tiles = getattr(image, "tile", ())
    raw_mode = tiles[0].args if image.format == "PNG" and tiles else None
    if raw_mode in ("L;2", "L;4") and isinstance(value, int):
        return value * (85 if raw_mode == "L;2" else 17)
    if raw_mode == "RGB;16B" and isinstance(value, tuple):
        return tuple(channel >> 8 for channel in value)
    return value


def _to_rgb(image: Image.Image, transparent: Any, background: Rgb) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_to_rgb(image, transparent, background)
    if image.mode == "LAB":
        to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_srgb)
        if converted is None:
            raise RefusedImageError("its LAB colors cannot be converted")
        return converted
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if transparent != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparent
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def _gray_to_rgb(image: Image.Image, transparent: Any, background: Rgb) -> Image.Image:
    """Gray values of 12, 16 or 32 bits or floating point as RGB, from the scale that they evidently have.

    Whole numbers of 32 bits have none of their own: whoever writes them keeps 8 or 16 bits in them.
    """
    gray = np.asarray(image).astype(np.float32)  # exact up to 2^24, above which everything is refused
    if not np.isfinite(gray).all():
        raise RefusedImageError("its gray values include infinity or NaN")
    low, high = gray.min(), gray.max()
    white = next((scale for scale in _white_levels(image) if high <= scale), None)
    if white is None or low < 0:
        raise RefusedImageError(f"gray values from {low:g} to {high:g} have no known scale; save it with 8 or 16 bits")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts 8 bits alone
        gray = white - gray
    pixels = np.repeat(np.rint(gray * (255 / white)).astype(np.uint8)[..., None], 3, axis=2)
    if isinstance(transparent, int):
        pixels[gray == transparent] = background
    return Image.fromarray(pixels)


def _white_levels(image: Image.Image) -> Sequence[int]:
    """Returns the levels that may be white, the first that no pixel exceeds is."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS)
    bits = bits[0] if isinstance(bits, tuple) and bits else bits
    if image.mode == "F":
        return (1, 255)
    if bits == 12:
        return (4095,)
    if image.mode == "I" and bits == 16:  # with a sign
        return (32767,)
    # Of a PNG or a PPM, Pillow's mode I has 16 bits.
    return (255, 65535) if image.mode == "I" and image.format not in ("PNG", "PPM") else (65535,)
