"""What a JPEG 2000 file would cost, by its headers (ITU-T T.800, annex A).

OpenJPEG makes a structure for every tile, precinct and code block before it decodes anything, and counts layers times
precincts: a file of a kilobyte may ask for gigabytes.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from vqgan.data.images.formats.refused import RefusedImageError

START = b"\xff\x4f\xff\x51"
"""Of a code stream: its marker, and that of the segment with sizes."""
_MOST_STREAMS = 16
_MOST_TILES = 4096
_MOST_COMPONENTS = 4
"""As Pillow has modes for."""
_MOST_PRECINCTS = 100_000
_MOST_CODE_BLOCKS = 500_000
_MOST_PACKETS = 5_000_000
_MOST_TILE_PARTS = 65_536
_COD, _COC, _POC, _SOT, _SOD, _END = 0x52, 0x53, 0x5F, 0x90, 0x93, 0xD9


@dataclass(frozen=True)
class _Size:
    """Of the image in pixels, its tiles, and the subsampling of each component."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    steps: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> int:
        return (_up(self.width, self.tile_width) + 1) * (_up(self.height, self.tile_height) + 1)


@dataclass(frozen=True)
class _Coding:
    """Of one component: levels, code block and precincts as powers of two, from the smallest level on."""

    levels: int
    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]


def check(data: bytes) -> None:
    """Raises RefusedImageError for a file that takes more than a camera's or a scanner's; malformed ones pass."""
    at, streams = data.find(START), 0
    while at >= 0:
        streams += 1
        if streams > _MOST_STREAMS:
            raise RefusedImageError(f"a JPEG 2000 file of more than {_MOST_STREAMS} code streams")
        with suppress(struct.error, IndexError):  # cut off: that is for the decoder
            _check_stream(data, at)
        at = data.find(START, at + 4)


def _check_stream(data: bytes, start: int) -> None:
    size, layers = None, 1
    codings: dict[int, _Coding] = {}
    for marker, at in _segments(data, start + 2):
        if marker == 0x51:
            size = _size(data, at)
        elif marker == _COD:
            layers = struct.unpack_from(">H", data, at + 4)[0]
            codings[-1] = _coding(data, at + 7, bool(data[at + 2] & 1))
        elif marker == _COC:
            codings[data[at + 2]] = _coding(data, at + 4, bool(data[at + 3] & 1))
        elif marker == _SOT:
            _check_tile_parts(data, at - 2)
    if size is not None and -1 in codings:
        _check_costs(size, layers, codings)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Marker and place of the length of each segment of the main header, the first tile's included."""
    for _ in range(_MOST_TILE_PARTS):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        yield marker, at + 2
        if marker in (_SOT, _END):
            return
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _check_tile_parts(data: bytes, at: int) -> None:
    for _ in range(_MOST_TILE_PARTS):
        if data[at : at + 2] != b"\xff\x90":
            return
        (length,) = struct.unpack_from(">L", data, at + 6)
        inner = at + 12
        while data[inner] == 0xFF and data[inner + 1] != _SOD:
            if data[inner + 1] in (_COD, _COC, _POC):
                raise RefusedImageError("a JPEG 2000 file whose tiles have settings of their own; save it again")
            inner += 2 + max(2, struct.unpack_from(">H", data, inner + 2)[0])
        if length < 14:
            return
        at += length
    raise RefusedImageError(f"a JPEG 2000 file of more than {_MOST_TILE_PARTS:,} tile parts")


def _size(data: bytes, at: int) -> _Size:
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6L", data, at + 4)
    (components,) = struct.unpack_from(">H", data, at + 36)
    if components > _MOST_COMPONENTS:
        raise RefusedImageError(f"a JPEG 2000 file of {components:,} components")
    steps = tuple(struct.unpack_from(">BB", data, at + 39 + 3 * number) for number in range(components))
    return _Size(
        max(1, right - left), max(1, bottom - top), max(1, tile_width), max(1, tile_height), steps
    )  # zeros are for the decoder


def _coding(data: bytes, at: int, own_precincts: bool) -> _Coding:
    levels = data[at]
    block = (data[at + 1] & 15) + 2, (data[at + 2] & 15) + 2
    sizes = data[at + 5 : at + 6 + levels] if own_precincts else b"\xff" * (levels + 1)
    return _Coding(levels, block, tuple((size & 15, size >> 4) for size in sizes))


def _check_costs(size: _Size, layers: int, codings: dict[int, _Coding]) -> None:
    precincts = blocks = 0
    width, height = min(size.width, size.tile_width), min(size.height, size.tile_height)
    for component, (x_step, y_step) in enumerate(size.steps):
        coding = codings.get(component, codings[-1])
        for level, (x_size, y_size) in enumerate(coding.precincts):
            shrink = coding.levels - level
            columns, rows = _up(_up(width, max(1, x_step)), 1 << shrink), _up(_up(height, max(1, y_step)), 1 << shrink)
            precincts += (_up(columns, 1 << x_size) + 1) * (_up(rows, 1 << y_size) + 1)
            # A code block is no larger than its precinct, and but for the smallest level half of that.
            half = int(level > 0)
            x_block, y_block = min(coding.block[0], max(0, x_size - half)), min(coding.block[1], max(0, y_size - half))
            blocks += (_up(columns, 1 << x_block) + 1) * (_up(rows, 1 << y_block) + 1)
    for count, most, what in (
        (size.tiles, _MOST_TILES, "tiles"),
        (precincts * size.tiles, _MOST_PRECINCTS, "precincts"),
        (blocks * size.tiles, _MOST_CODE_BLOCKS, "code blocks"),
        (precincts * size.tiles * layers, _MOST_PACKETS, "packets"),
    ):
        if count > most:
            raise RefusedImageError(f"a JPEG 2000 file of {count:,} {what}, the limit is {most:,}; save it again")


def _up(length: int, step: int) -> int:
    return -(-length // step)
