"""Images on one white sheet, to look at: a grid with captions and verdicts, or originals beside reconstructions.

Small images are enlarged by an integer factor without smoothing, so that every pixel stays visible.
All lengths are in pixels of the sheet.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SHOWN = 176
"""About how long the longest side of a small image is on the sheet."""
_MARGIN = 24
"""White around the whole sheet."""
_GAP = 20
"""White between neighbors in a row."""
_ROW_GAP = 28
"""White between rows of cells."""
_PAIR_GAP = 6
"""White between the two images of a pair."""
_TEXT_GAP = 8
"""White between an image and its text."""
_FONT_SIZE = 14
_WORD_GAP = 4
"""White between words: the font's own 3 run small words together."""
_LINE_HEIGHT = 18
_MOST_LINES = 6
"""A longer caption ends in an ellipsis."""
_BADGE = 22
"""Diameter of a verdict's badge."""

_PAPER = (255, 255, 255)
_INK = (48, 48, 54)
_HAIRLINE = (214, 214, 220)
"""Frame of an image without a verdict: white images on a white sheet need an edge."""
_RIGHT = (34, 153, 84)
_WRONG = (208, 48, 48)


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    *,
    columns: int = 6,
    scale: int | None = None,
    marks: Sequence[bool | None] | None = None,
) -> Image.Image:
    """Returns a grid of images, row by row, each with its caption beneath.

    `scale` enlarges every image by that whole number; None chooses the one that shows the largest image at about
    176 pixels. `marks` gives verdicts: True a green frame with a tick, False a red one with a cross, None neither.
    Raises ValueError where there is no image, or not exactly one caption and one mark for each.
    """
    for name, values in (("captions", captions), ("marks", marks)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(values)} {name} for {len(images)} images: give each image one, or none at all")
    shown = _enlarged(images, scale)
    columns = _columns(columns, len(shown))
    width, height = _largest(shown)
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [_wrap(caption, font, width) for caption in captions] if captions else [[] for _ in shown]

    # A row is as high as its longest caption asks for.
    rows = [range(start, min(start + columns, len(shown))) for start in range(0, len(shown), columns)]
    row_heights = [height + _text_height(max(len(texts[index]) for index in row)) for row in rows]
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * width + (columns - 1) * _GAP,
            2 * _MARGIN + sum(row_heights) + (len(rows) - 1) * _ROW_GAP,
        ),
        _PAPER,
    )
    canvas = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, index in enumerate(row):
            left = _MARGIN + column * (width + _GAP)
            box = _place(sheet, shown[index], (left, top), (width, height))
            mark = marks[index] if marks else None
            if mark is None:
                _frame(canvas, box, _HAIRLINE, 1)
            else:
                _frame(canvas, box, _RIGHT if mark else _WRONG, 3)
                badge = _badge(mark)
                # On the upper right corner, half outside: it hides next to nothing of the image.
                sheet.paste(badge, (box[2] - badge.width // 2, box[1] - badge.height // 2), badge)
            _write(canvas, texts[index], font, left + width / 2, top + height + _TEXT_GAP)
        top += row_height + _ROW_GAP
    return sheet


def comparison_sheet(
    rows: Sequence[tuple[Image.Image, Image.Image]],
    labels: tuple[str, str] = ("original", "reconstruction"),
    *,
    columns: int = 3,
    scale: int | None = None,
) -> Image.Image:
    """Returns pairs of images side by side, `columns` pairs to a row, under a head line with the two `labels`.

    `scale` is as in `contact_sheet`. Raises ValueError where there is no pair.
    """
    shown = _enlarged([image for pair in rows for image in pair], scale)
    columns = _columns(columns, len(rows))
    width, height = _largest(shown)
    font = ImageFont.load_default(_FONT_SIZE)
    heads = [_wrap(label, font, width) for label in labels]
    head_height = max(map(len, heads)) * _LINE_HEIGHT + _TEXT_GAP

    pair_width = 2 * width + _PAIR_GAP
    count = -(-len(rows) // columns)
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * pair_width + (columns - 1) * _GAP,
            2 * _MARGIN + head_height + count * height + (count - 1) * _GAP,
        ),
        _PAPER,
    )
    canvas = ImageDraw.Draw(sheet)
    for index, image in enumerate(shown):
        pair, side = divmod(index, 2)
        row, column = divmod(pair, columns)
        left = _MARGIN + column * (pair_width + _GAP) + side * (width + _PAIR_GAP)
        top = _MARGIN + head_height + row * (height + _GAP)
        _frame(canvas, _place(sheet, image, (left, top), (width, height)), _HAIRLINE, 1)
        if row == 0:
            _write(canvas, heads[side], font, left + width / 2, _MARGIN)
    return sheet


def _columns(columns: int, count: int) -> int:
    if count == 0:
        raise ValueError("a sheet needs at least one image, received none")
    if columns < 1:
        raise ValueError(f"a sheet needs at least one column, received {columns}")
    return min(columns, count)


def _enlarged(images: Sequence[Image.Image], scale: int | None) -> list[Image.Image]:
    """Returns the images in RGB, each `scale` times as large; all by the same factor, so that they compare."""
    if scale is None:
        scale = max(1, round(_SHOWN / max((side for image in images for side in image.size), default=1)))
    if scale < 1:
        raise ValueError(f"scale is a whole number from 1 on, received {scale}")
    return [
        image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        for image in images
    ]


def _largest(images: Sequence[Image.Image]) -> tuple[int, int]:
    return max(image.width for image in images), max(image.height for image in images)


def _place(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], room: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Put `image` in the middle of a cell's room; the box that it now takes (right and bottom are outside)."""
    left = corner[0] + (room[0] - image.width) // 2
    top = corner[1] + (room[1] - image.height) // 2
    sheet.paste(image, (left, top))
    return left, top, left + image.width, top + image.height


def _frame(
    canvas: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: tuple[int, int, int], width: int
) -> None:
    """A frame around the box, outside of it: no pixel of the image is hidden."""
    left, top, right, bottom = box
    canvas.rectangle((left - width, top - width, right + width - 1, bottom + width - 1), outline=color, width=width)


def _badge(right: bool) -> Image.Image:
    """Returns a round tick or cross with a white rim, drawn large and made small for smooth edges."""
    fine = 8
    size = (_BADGE + 4) * fine
    badge = Image.new("RGBA", (size, size), (*_PAPER, 0))
    canvas = ImageDraw.Draw(badge)
    canvas.ellipse((0, 0, size - 1, size - 1), fill=_PAPER)
    canvas.ellipse((2 * fine, 2 * fine, size - 1 - 2 * fine, size - 1 - 2 * fine), fill=_RIGHT if right else _WRONG)
    tick = [[(0.30, 0.52), (0.45, 0.66), (0.71, 0.37)]]
    cross = [[(0.35, 0.35), (0.65, 0.65)], [(0.65, 0.35), (0.35, 0.65)]]
    thickness = 0.095 * size
    for stroke in tick if right else cross:
        points = [(x * size, y * size) for x, y in stroke]
        canvas.line(points, _PAPER, round(thickness), joint="curve")
        for x, y in (points[0], points[-1]):  # round ends
            canvas.circle((x, y), thickness / 2, _PAPER)
    return badge.resize((_BADGE + 4, _BADGE + 4), Image.Resampling.LANCZOS)


def _write(canvas: ImageDraw.ImageDraw, lines: Sequence[str], font: Font, center: float, top: int) -> None:
    for number, line in enumerate(lines):
        left = center - _length(line, font) / 2
        for word in line.split():
            canvas.text((round(left), top + number * _LINE_HEIGHT), word, _INK, font, anchor="la")
            left += font.getlength(word) + _WORD_GAP


def _length(line: str, font: Font) -> float:
    words = line.split()
    return sum(font.getlength(word) for word in words) + _WORD_GAP * (len(words) - 1)


def _text_height(lines: int) -> int:
    return _TEXT_GAP + lines * _LINE_HEIGHT if lines else 0


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Returns lines no wider than `width`, broken between words, and inside of a word that is itself too wide."""
    width -= 2  # glyphs may reach a little over their advance
    lines: list[str] = []
    for word in text.split():
        if lines and _length(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
            continue
        while font.getlength(word) > width and len(word) > 1:
            cut = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or font.getlength(word[:end]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    if len(lines) > _MOST_LINES:
        lines = lines[:_MOST_LINES]
        while lines[-1] and _length(lines[-1] + "…", font) > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines
