"""Images that cost far more than their bytes end in one line, or as the good image that is in them; quickly."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.vqgan.data.bounded_child import call_bounded
from tests.vqgan.data.images.hostile_images import BOMBS, SMALL, chunk, encode, jpeg, png, segment
from vqgan.data.images.decode import MAX_SIDE, decode_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.source import UnusableSample


def decoded(data: bytes) -> str:
    try:
        return str(decode_image(data, "it").size)
    except UnusableSample as unusable:
        return unusable.cause


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_itself_alone(bomb: str) -> None:
    make, said = BOMBS[bomb]
    data = make()
    found = call_bounded(lambda: decoded(data), seconds=20, megabytes=700)
    assert said in found, found
    assert "\n" not in found
    assert len(found) < 300


@pytest.mark.parametrize("crop", ["pad", "stretch", "center", "random", "dalle_tokenizer", "dalle_transformer"])
@pytest.mark.parametrize("size", [(MAX_SIDE, 1), (1, MAX_SIDE), (3, MAX_SIDE)])
def test_the_longest_image_goes_through_every_crop(crop: str, size: tuple[int, int]) -> None:
    image = decode_image(encode("PNG", Image.new("RGB", size)), "it")
    transform = ImageTransform(TransformConfig(image_size=64, crop=crop))  # type: ignore[arg-type]

    def shapes() -> list[tuple[int, ...]]:
        return [tuple(transform(image, rng).shape) for rng in (None, np.random.default_rng(0))]

    assert call_bounded(shapes, seconds=20) == [(3, 64, 64)] * 2


def exif(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHLHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(order + "LH", 8, 1) + entry + bytes(4)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW = b"\nexif\n   26\n" + exif(6).hex().encode()
TURNED = {
    "JPEG, little-endian": jpeg(segment(0xE1, b"Exif\0\0" + exif(6))),
    "JPEG, big-endian": jpeg(segment(0xE1, b"Exif\0\0" + exif(6, ">"))),
    "JPEG, behind a comment and a profile": jpeg(
        segment(0xFE, b"hi"), segment(0xE2, bytes(60_000)), segment(0xE1, b"Exif\0\0" + exif(6))
    ),
    "JPEG, XMP": jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "PNG": png(chunk(b"eXIf", exif(6))),
    "PNG, as a packed text": png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW))),
    "PNG, as a text": png(chunk(b"tEXt", b"Raw profile type exif\0" + RAW)),
    "PNG, XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "PNG, packed XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
}


@pytest.mark.parametrize("kind", TURNED)
def test_the_orientation_is_read_although_annotations_are_not_handed_on(kind: str) -> None:
    data = TURNED[kind]
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get(0x0112) == 6, "Pillow reads it so"
    upright = decode_image(encode(data[1:4].decode() if data.startswith(b"\x89") else "JPEG", SMALL), "it")
    turned = decode_image(data, "it")
    assert turned.tobytes() == upright.transpose(Image.Transpose.ROTATE_270).tobytes()
    # An image that is open tells the same.
    with Image.open(io.BytesIO(data)) as image:
        assert decode_image(image, "it").tobytes() == turned.tobytes()


def test_annotations_change_no_pixel() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    palette = noise.quantize(16)
    for kind, image, options in (
        ("JPEG", noise, {"comment": b"hi", "exif": exif(1), "icc_profile": b"p" * 200_000}),
        ("JPEG", noise.convert("CMYK"), {"comment": b"hi"}),
        ("JPEG", noise.convert("L"), {"progressive": True, "comment": b"hi"}),
        ("PNG", palette, {"transparency": 3, "icc_profile": b"p" * 1000, "dpi": (300, 300)}),
        ("PNG", noise, {"transparency": (1, 2, 3)}),
        ("GIF", palette, {"transparency": 3, "comment": b"c" * 1000}),
        ("GIF", palette, {"save_all": True, "append_images": [palette.rotate(90)], "loop": 0}),
    ):
        data = encode(kind, image, **options)
        with Image.open(io.BytesIO(data)) as opened:
            expected = decode_image(opened, "as Pillow opens it")
        assert decode_image(data, "it").tobytes() == expected.tobytes(), (kind, options)


def tiff(pixels: bytes, bits: int, sample_format: int, photometric: int) -> bytes:
    """A gray TIFF of 2 x 1 pixels."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 200), (277, 1), (278, 1)]
    tags += [(279, len(pixels)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)).ljust(200, b"\0") + pixels


RANGES = {
    "12 bits": (tiff(bytes([0x00, 0x0F, 0xFF]), 12, 1, 1), (0, 255)),
    "16 bits": (tiff(struct.pack("<2H", 0, 65535), 16, 1, 1), (0, 255)),
    "16 bits, a dark image": (tiff(struct.pack("<2H", 0, 255), 16, 1, 1), (0, 1)),
    "16 bits, white is zero": (tiff(struct.pack("<2H", 0, 65535), 16, 1, 0), (255, 0)),
    "16 bits with a sign": (tiff(struct.pack("<2h", 0, 32767), 16, 2, 1), (0, 255)),
    "32 bits that hold 8": (tiff(struct.pack("<2L", 0, 255), 32, 1, 1), (0, 255)),
    "32 bits that hold 16": (tiff(struct.pack("<2L", 0, 65535), 32, 1, 1), (0, 255)),
    "32 bits with a sign": (tiff(struct.pack("<2l", 128, 255), 32, 2, 1), (128, 255)),
    "floating point to 1": (tiff(struct.pack("<2f", 0, 1), 32, 3, 1), (0, 255)),
    "floating point to 255": (tiff(struct.pack("<2f", 0, 255), 32, 3, 1), (0, 255)),
    "floating point, white is zero": (tiff(struct.pack("<2f", 0, 1), 32, 3, 0), (255, 0)),
}


@pytest.mark.parametrize("kind", RANGES)
def test_black_is_black_and_white_is_white_in_every_depth(kind: str) -> None:
    data, levels = RANGES[kind]
    image = decode_image(data, kind)
    assert tuple(np.asarray(image)[0, :, 0]) == levels
    assert tuple(np.asarray(image)[0, :, 2]) == levels


def test_every_mode_of_an_open_image_keeps_its_look() -> None:
    original = Image.fromarray(np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)).convert("RGB")
    for mode, most in {
        **{"1": 255, "L": 1, "LA": 1, "La": 1, "P": 1, "PA": 1, "I": 1, "F": 1},
        **{"RGBA": 1, "RGBa": 1, "RGBX": 1, "CMYK": 2, "YCbCr": 3, "HSV": 8},
    }.items():
        source = original
        for step in {"La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "PA": ["P", "PA"]}.get(mode, [mode]):
            source = source.convert("L").convert(step) if step in ("1", "LA", "I", "F", "P") else source.convert(step)
        assert source.mode == mode
        off = np.abs(np.asarray(decode_image(source, mode)).astype(int) - np.asarray(original).astype(int))
        assert off.max() <= most, mode
        assert mode == "1" or abs(np.asarray(decode_image(source, mode)).mean() - 127.5) < 3, mode
