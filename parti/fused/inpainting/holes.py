"""Random holes in images: rectangles and brush strokes that cover a given fraction of the image."""

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

_RECTANGLES = (1, 4)
"""Smallest and largest number of rectangles."""
_ASPECT = 2.0
"""Largest aspect ratio of a rectangle."""
_RECTANGLE_PART = (0.4, 0.95)
"""Smallest and largest fraction of the hole that rectangles cover if they do not overlap; strokes cover the rest."""
_BRUSH = (0.05, 0.12)
"""Thinnest and thickest brush, as fractions of the image's side."""
_STEP = 0.12
"""Length of each straight segment of a stroke, in the same unit."""
_TURN = 0.8
"""Largest turn between two segments, in radians."""
_STROKE = 5
"""Segments of a stroke."""
OVERSHOOT = 0.03
"""Largest fraction of the image by which a hole exceeds the requested one: the last segment of a stroke."""


def random_hole(side: int, share: float, rng: np.random.Generator) -> Bool[np.ndarray, "side side"]:
    """Returns a mask (true in the hole) that covers at least `share` of `side` x `side` pixels, and at most
    `OVERSHOOT` more."""
    hole = Image.new("L", (side, side))
    canvas = ImageDraw.Draw(hole)
    wanted = share * side * side

    # 1. Rectangles, each with its part of the area.
    count = int(rng.integers(_RECTANGLES[0], _RECTANGLES[1] + 1))
    area = wanted * rng.uniform(*_RECTANGLE_PART) / count
    for _ in range(count):
        aspect = math.exp(rng.uniform(-1, 1) * math.log(_ASPECT))
        width, height = (max(1, min(side, int(math.sqrt(area * factor)))) for factor in (aspect, 1 / aspect))
        left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
        canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=1)

    # 2. Strokes that begin outside of the hole, until it is large enough.
    pieces, x, y = 0, 0.0, 0.0
    while hole.histogram()[1] < wanted:
        if pieces % _STROKE == 0:
            outside = np.flatnonzero(np.array(hole) == 0)
            y, x = map(float, divmod(int(outside[rng.integers(len(outside))]), side))
            direction = rng.uniform(0, 2 * math.pi)
            brush = max(1, round(side * rng.uniform(*_BRUSH)))
        direction += rng.uniform(-_TURN, _TURN)
        end_x, end_y = x + side * _STEP * math.cos(direction), y + side * _STEP * math.sin(direction)
        canvas.line((x, y, end_x, end_y), fill=1, width=brush)
        canvas.circle((end_x, end_y), brush / 2, fill=1)
        x, y = end_x, end_y
        pieces += 1
    return np.array(hole, np.bool_)
