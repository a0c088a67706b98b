"""Any picture as an upright RGB `PIL.Image`, or an UnusableSample that says why not.

What has a meaning is converted: transparency is laid on a background colour, 16 bits are scaled (Pillow alone would
clip them) to 8, CMYK, YCbCr, HSV and LAB become RGB, the EXIF orientation is applied, an animation gives its first
frame. Embedded colour profiles (ICC) are not applied, as is usual for training data.

Nothing here depends on Pillow's global settings, and only raster formats are tried: an EPS file would start
Ghostscript on text that came from somewhere. Whatever the bytes are, time and memory are bounded: the limits below
refuse by the header, so that the worst picture takes seconds, some 20 on a slow core.
"""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, UnidentifiedImageError
from pydantic import AfterValidator

from vqgan.data.source import UnusableSample

MAX_PIXELS = 100_000_000
"""Pictures above 100 megapixels are refused by their header: 300 MB of memory each is a mistake or an attack."""
MAX_SLOW_PIXELS = 16_000_000
"""The same for what is decoded at about a megapixel a second: JPEG 2000, and formats that Pillow reads in Python."""
MAX_BYTES = 2**30
"""Larger files are refused unread: no picture of MAX_PIXELS needs more."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "DIB")
"""Pillow's names of the formats that are tried, the commonest first; an old Pillow lacks AVIF."""

_SLOW_CODECS = {"jpeg2k", "qoi", "ppm", "ppm_plain", "bmp_rle"}
"""Pillow's names of the decoders that MAX_SLOW_PIXELS is for; ordinary PPM and BMP files are "raw"."""
_MAX_SCANNED_PIXELS = 5_000_000_000
"""Pixels times scans of a progressive JPEG, each scan a pass over the picture: 10 to 14 are usual, any number legal."""

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
"""EXIF orientation -> what puts the picture upright."""


def parse_colour(text: str) -> Rgb:
    """`#ffffff`, `#fff`, `white` or `rgb(255, 255, 255)` as (red, green, blue). Raises ValueError for anything else."""
    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        colour = (0, 0, 0, 0)
    if len(colour) != 3:
        raise ValueError(f"not an opaque colour: {text!r}; write '#rrggbb' (in quotes) or a name such as white")
    return colour


def _check_colour(text: str) -> str:
    parse_colour(text)
    return text


Colour = Annotated[str, AfterValidator(_check_colour)]
"""A config field that holds a colour as text; `parse_colour` reads it."""


def decode_image(
    source: bytes | Path | Image.Image, name: str, background: Rgb = (255, 255, 255), *, at_least: int | None = None
) -> Image.Image:
    """An encoded picture, a file or a PIL picture as an upright RGB picture that owns its pixels.

    `background` shows through where the picture is transparent. `at_least`: a JPEG whose shorter side is twice that
    or more comes at a half, a quarter or an eighth of its size, as long as the shorter side keeps `at_least` pixels;
    that saves most of the time of a large photograph. Raises UnusableSample(name, cause) for whatever cannot be
    decoded; a PIL picture given as `source` stays open and unchanged.
    """
    try:
        with _quiet_pillow():
            if isinstance(source, Image.Image):
                picture = _decode(source, background)
                return picture.copy() if picture is source else picture
            data = source if isinstance(source, bytes) else _read(source)
            if not data:
                raise _RefusedError("the file is empty (0 bytes)")
            with Image.open(io.BytesIO(data), formats=_openable_formats()) as image:
                _refuse_slow(image, data)
                if at_least is not None:
                    image.draft(None, (at_least, at_least))  # only JPEG takes notice
                return _decode(image, background)
    except _RefusedError as refusal:
        raise UnusableSample(name, str(refusal)) from None
    except Image.DecompressionBombError:
        raise UnusableSample(name, f"too large: more than the limit of {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS[:6])
        raise UnusableSample(
            name, f"not a picture in a known format ({known}, ...), or cut off in its header"
        ) from None
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


class _RefusedError(Exception):
    """A picture without a sensible meaning; the message becomes the cause."""


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _RefusedError(f"too large: a file of {size:,} bytes is more than the limit of {MAX_BYTES:,}")
    return path.read_bytes()


@functools.cache
def _openable_formats() -> tuple[str, ...]:
    Image.init()  # makes Pillow load its list of formats; it adds nothing the second time
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignore the warnings of Pillow's own modules (large picture, odd EXIF): here they are decided or harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _refuse_slow(image: Image.Image, data: bytes) -> None:
    """Refuse by the header what would take minutes to decode."""
    width, height = image.size
    _refuse_size(width, height)
    if width * height > MAX_SLOW_PIXELS and any(tile[0] in _SLOW_CODECS for tile in getattr(image, "tile", ())):
        raise _RefusedError(
            f"too large for its slow format: {width}x{height} is more than the limit of {MAX_SLOW_PIXELS:,} pixels"
        )
    if image.info.get("progressive"):
        scans = data.count(b"\xff\xda")
        if width * height * scans > _MAX_SCANNED_PIXELS:
            raise _RefusedError(f"a progressive JPEG of {width}x{height} pixels in {scans} scans; save it again")


def _refuse_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise _RefusedError(f"a picture of {width}x{height} pixels shows nothing")
    if width * height > MAX_PIXELS:
        raise _RefusedError(f"too large: {width}x{height} is more than the limit of {MAX_PIXELS:,} pixels")


def _decode(image: Image.Image, background: Rgb) -> Image.Image:
    # 1. The header alone is enough to refuse.
    _refuse_size(*image.size)
    transparent = _transparent_value(image)
    # 2. Pixels; formats that turn the picture themselves (TIFF) take the orientation out of the EXIF data here.
    image.load()
    orientation = _orientation(image)
    # 3. Colours, then upright.
    rgb = _to_rgb(image, transparent, background)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; unreadable EXIF data around a good picture is no reason to lose the picture."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _transparent_value(image: Image.Image) -> Any:
    """The grey value, colour or palette entries that count as transparent, in the scale of the decoded pixels.

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
        return _grey_to_rgb(image, transparent, background)
    if image.mode == "LAB":
        to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_srgb)
        if converted is None:
            raise _RefusedError("its LAB colours cannot be converted")
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


def _grey_to_rgb(image: Image.Image, transparent: Any, background: Rgb) -> Image.Image:
    """Grey values of 16 bits, 32 bits or floating point as RGB, from the scale that they evidently have."""
    grey = np.asarray(image).astype(np.float32)  # exact up to 2^24, above which everything is refused
    if not np.isfinite(grey).all():
        raise _RefusedError("its grey values include infinity or NaN")
    low, high = grey.min(), grey.max()
    scales = [1, 255] if image.mode == "F" else [65535]
    white = next((scale for scale in scales if high <= scale), None)
    if white is None or low < 0:
        raise _RefusedError(f"grey values from {low:g} to {high:g} have no known scale; save it with 8 or 16 bits")
    pixels = np.repeat(np.rint(grey * (255 / white)).astype(np.uint8)[..., None], 3, axis=2)
    if isinstance(transparent, int):
        pixels[grey == transparent] = background
    return Image.fromarray(pixels)
