"""Every kind of image ends as the right colors or as an UnusableSample with a cause."""

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from vqgan.data.images import decode as images
from vqgan.data.images.decode import decode_image, parse_color
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.source import UnusableSample

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, color_type: int, rows: list[bytes], *extra: bytes) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def cause(source: bytes | Path | Image.Image) -> str:
    with pytest.raises(UnusableSample) as caught:
        decode_image(source, "the name")
    assert caught.value.name == "the name"
    assert "\n" not in caught.value.cause
    return caught.value.cause


def test_an_ordinary_image_is_unchanged_from_bytes_file_and_pil(tmp_path: Path) -> None:
    original = noise()
    path = tmp_path / "a.png"
    path.write_bytes(encode(original, "PNG"))
    for source in (path.read_bytes(), path, original):
        assert np.array_equal(decode_image(source, "a"), original)
    with Image.open(path) as lazily_opened:
        assert np.array_equal(decode_image(lazily_opened, "a"), original)
        assert pixel(lazily_opened) == pixel(original), "the caller's image stays open"
    result = decode_image(original, "a")
    result.putpixel((0, 0), (1, 2, 3))
    assert pixel(original) != (1, 2, 3), "the result owns its pixels"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "ICO", "QOI"])
def test_the_common_formats_open(kind: str) -> None:
    image = decode_image(encode(Image.new("RGB", (32, 32), (200, 40, 90)), kind), "a")
    assert np.abs(np.subtract(pixel(image, 16, 16), (200, 40, 90))).max() <= 4


# --- transparency -----------------------------------------------------------------------------------------------


def test_half_transparent_is_laid_on_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    image.putpixel((1, 0), (12, 34, 56, 0))
    on_white = decode_image(encode(image, "PNG"), "a")
    assert pixel(on_white) == (255, 127, 127)
    assert pixel(on_white, 1) == WHITE
    on_blue = decode_image(encode(image, "PNG"), "a", background=BLUE)
    assert pixel(on_blue) == (128, 0, 127)
    assert pixel(on_blue, 1) == BLUE


def test_gray_with_alpha() -> None:
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))
    for source in (encode(image, "PNG"), image, image.convert("La")):
        pil_image = decode_image(source, "a", background=GREEN)
        assert (pixel(pil_image), pixel(pil_image, 1)) == (BLACK, GREEN)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff", b"\xff\x00"])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    pil_image = decode_image(encode(image, "PNG", transparency=transparency), "a")
    assert [pixel(pil_image, x) for x in range(3)] == [RED, WHITE, BLUE]


def test_palette_with_alpha_channel_and_transparent_gif() -> None:
    opaque = Image.new("P", (1, 1))
    opaque.putpalette([*RED, *GREEN])
    assert pixel(decode_image(opaque.convert("PA"), "a")) == RED
    assert pixel(decode_image(encode(opaque, "GIF", transparency=0), "a", background=BLUE)) == BLUE


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, b"\x40", 1, [BLACK, GREEN]),
        (1, b"\x40", 0, [GREEN, WHITE]),
        (2, b"\x20", 2, [BLACK, GREEN]),
        (4, b"\x0b", 11, [BLACK, GREEN]),
        (8, b"\x00\x80", 128, [BLACK, GREEN]),
        (16, b"\x00\x00\x80\x01", 0x8001, [BLACK, GREEN]),
    ],
)
def test_a_transparent_gray_value_at_every_bit_depth(
    bits: int, row: bytes, transparent: int, expected: list[tuple[int, int, int]]
) -> None:
    data = png(2, 1, bits, 0, [row], chunk(b"tRNS", struct.pack(">H", transparent)))
    image = decode_image(data, "a", background=GREEN)
    assert [pixel(image, x) for x in range(2)] == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_color(bits: int) -> None:
    pack = "B" if bits == 8 else "H"
    top = 2**bits - 1
    row = struct.pack(f">6{pack}", top, 0, 0, 0, 0, top)
    data = png(2, 1, bits, 2, [row], chunk(b"tRNS", struct.pack(">3H", top, 0, 0)))
    image = decode_image(data, "a", background=GREEN)
    assert [pixel(image, x) for x in range(2)] == [GREEN, BLUE]


# --- bit depths and color spaces ---------------------------------------------------------------------------------


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    pil_image = decode_image(encode(image, "PNG"), "a")
    assert (pixel(pil_image), pixel(pil_image, 1)) == (BLACK, WHITE)


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("TIFF", "<i4")])
def test_16_bit_gray_keeps_its_gradient(kind: str, dtype: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(dtype)[None]
    mode = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[dtype]
    image = Image.frombytes(mode, (256, 1), ramp.tobytes())
    for source in (encode(image, kind), image):
        pil_image = np.asarray(decode_image(source, "a"))
        assert np.array_equal(pil_image[0], np.repeat(np.arange(256)[:, None], 3, axis=1))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point_gray_keeps_its_gradient(top: float) -> None:
    image = Image.fromarray(np.linspace(0, top, 256, dtype=np.float32)[None])
    assert image.mode == "F"
    pil_image = np.asarray(decode_image(encode(image, "TIFF"), "a"))
    assert np.array_equal(pil_image[0, :, 0], np.arange(256))


def test_gray_values_without_a_scale_are_refused() -> None:
    assert "from -5 to 1e+06" in cause(Image.fromarray(np.array([[-5, 1_000_000]], np.int32)))
    assert "from 0 to 4000" in cause(Image.fromarray(np.array([[0, 4000]], np.float32)))
    assert "NaN" in cause(Image.fromarray(np.array([[0, np.nan]], np.float32)))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    # Pillow writes CMYK JPEGs the way Adobe does: inverted, with Adobe's marker.
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)
    assert np.abs(np.subtract(pixel(decode_image(data, "a"), 8, 8), RED)).max() <= 3


def test_ycbcr_hsv_and_lab() -> None:
    color = (200, 60, 90)
    image = Image.new("RGB", (4, 4), color)
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    for converted in (image.convert("YCbCr"), image.convert("HSV"), lab):
        assert np.abs(np.subtract(pixel(decode_image(converted, "a")), color)).max() <= 4
    assert np.abs(np.subtract(pixel(decode_image(encode(lab, "TIFF"), "a")), color)).max() <= 4


# --- orientation and animation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "tl"), (2, "tr"), (3, "br"), (4, "bl"), (5, "tl"), (6, "tr"), (7, "br"), (8, "bl")],
)
def test_exif_orientation_is_applied(kind: str, orientation: int, corner: str) -> None:
    stored = Image.new("RGB", (64, 32), WHITE)
    stored.paste(RED, (0, 0, 16, 16))  # top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, kind, exif=exif), "a")
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    x, y = (8 if corner[1] == "l" else image.width - 9), (8 if corner[0] == "t" else image.height - 9)
    assert np.abs(np.subtract(pixel(image, x, y), RED)).max() < 40


def test_broken_exif_does_not_cost_the_image() -> None:
    data = encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode_image(data, "a").size == (64, 64)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixel(decode_image(data, "a")) == RED


# --- what cannot be used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated(kind: str, share: float) -> None:
    data = encode(noise(), kind)
    assert re.search(r"cannot be decoded: \S|not an image in a known format", cause(data[: int(len(data) * share)]))


def test_zero_bytes_text_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert cause(path) == f"the file is missing: {str(path)!r}"
    with pytest.raises(UnusableSample, match=r"^nowhere\.png: the file is missing$"):
        decode_image(Path("nowhere.png"), "nowhere.png")
    path.write_bytes(b"")
    assert cause(path) == cause(b"") == "the file is empty (0 bytes)"
    path.write_text("404: not found\n" * 100)
    assert cause(path).startswith("not an image in a known format")
    assert "cannot be decoded" in cause(tmp_path)


def test_postscript_is_not_run() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert cause(script).startswith("not an image in a known format")


@pytest.mark.parametrize("side", [60_000, 12_000, 10_001])
def test_a_huge_image_is_refused_by_its_header(side: int) -> None:
    # 12,000 squared makes Pillow warn, 60,000 squared makes it raise, 10,001 squared leaves it silent.
    assert "100,000,000 pixels" in cause(png(side, side, 8, 2, [b""]))


def test_the_limit_does_not_depend_on_pillows_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "too large: 60000x60000" in cause(png(60_000, 60_000, 8, 2, [b""]))


def test_pillows_warning_about_a_large_image_does_not_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # noise() has 4096 pixels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode_image(encode(noise(), "PNG"), "a").size == (64, 64)
    assert caught == []


def test_no_pixels() -> None:
    assert "0x5" in cause(Image.new("RGB", (0, 5)))
    cause(png(0, 5, 8, 2, [b""]))


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "JPEG2000"):
        data = np.frombuffer(encode(noise(24, 24), kind), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            # Mostly the header, where the parsers are.
            damaged[rng.integers(0, min(len(data), 120), 6)] = rng.integers(0, 256, 6)
            try:
                assert decode_image(damaged.tobytes(), "a").mode == "RGB"
                outcomes.add("decoded")
            except UnusableSample:
                outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}


def test_colors_are_read_and_checked() -> None:
    assert (parse_color("#0a141e"), parse_color("white")) == ((10, 20, 30), WHITE)
    for wrong in ("#ffff", "transparent?", "", "12"):
        with pytest.raises(ValueError, match="not an opaque color"):
            parse_color(wrong)


# --- large JPEGs, and what would take minutes ---------------------------------------------------------------------


def photograph(width: int, height: int) -> Image.Image:
    """Detail of every size, like a photograph's."""
    rng = np.random.default_rng(0)
    total = np.full((height, width), 128.0)
    for cells in (4, 8, 16, 32, 64, 128):
        coarse = Image.fromarray(rng.normal(0, 80 / cells, (cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    total += rng.normal(0, 6, total.shape)
    return Image.fromarray(np.stack([total, total[::-1], total[:, ::-1]], axis=2).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("min_side", "size"), [(96, (128, 96)), (97, (256, 192)), (48, (64, 48)), (400, (512, 384))])
def test_a_large_jpeg_is_decoded_smaller_as_far_as_allowed(min_side: int, size: tuple[int, int]) -> None:
    data = encode(photograph(512, 384), "JPEG", quality=90)
    assert decode_image(data, "a", min_side=min_side).size == size
    assert decode_image(data, "a").size == (512, 384)


def test_other_formats_and_turned_jpegs_with_a_least_side() -> None:
    assert decode_image(encode(noise(), "PNG"), "a", min_side=8).size == (64, 64)
    assert decode_image(noise(), "a", min_side=8).size == (64, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(noise(64, 32), "JPEG", exif=exif), "a", min_side=16).size == (16, 32)
    assert decode_image(encode(noise().convert("CMYK"), "JPEG"), "a", min_side=16).size == (16, 16)


@pytest.mark.parametrize("quality", [75, 97])
def test_a_jpeg_decoded_smaller_ends_as_the_same_image(quality: int) -> None:
    """Halved or quartered to twice the size that is wanted, then resized: 45 dB beside resizing the whole image."""
    config = TransformConfig(image_size=64)
    for side in (256, 512):
        data = encode(photograph(side * 2, side), "JPEG", quality=quality)
        smaller = decode_image(data, "a", min_side=config.min_decode_side)
        assert smaller.height == 128
        shown = [ImageTransform(config)(image, None) for image in (decode_image(data, "a"), smaller)]
        error = float(torch.mean((shown[0] - shown[1]) ** 2))
        assert 10 * np.log10(4 / error) > 45


def test_slow_formats_have_a_lower_limit() -> None:
    assert "slow format: 5000x4000" in cause(b"qoif" + struct.pack(">IIBB", 5000, 4000, 3, 0) + bytes(100))
    assert "slow format" in cause(b"P3\n5000 4000\n255\n" + b"1 " * 100)
    assert "slow format" in cause(b"P6\n5000 4000\n1000\n" + bytes(100))
    assert "truncated" in cause(b"P6\n5000 4000\n255\n" + bytes(100)), "the ordinary one is not slow"


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = encode(noise(1000, 1000), "JPEG", progressive=True, quality=30)
    end = data.rindex(b"\xff\xd9")
    assert decode_image(data, "a").size == (1000, 1000)
    repeated = data[:end] + b"\xff\xda" * 6000 + data[end:]
    assert re.search(r"1000x1000 pixels in 60\d\d scans; save it again", cause(repeated))


def test_a_file_too_large_to_be_a_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise(), "PNG"))
    assert re.search(r"too large: a file of 1\d,\d+ bytes is more than the limit of 1,000", cause(path))


def test_an_error_without_words_is_named() -> None:
    looping_exif = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 256, 3, 1, 8, 0)
    assert re.search(r"cannot be decoded: \w+ \S|not an image", cause(looping_exif))
