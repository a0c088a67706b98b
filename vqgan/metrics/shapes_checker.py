"""Checks from pixels alone whether an image shows what its `shapes` caption says.

An opinion independent of the renderer: of `vqgan.data.sources.shapes` only the grammar and its constants are used. Made
for what networks generate: blurred edges, a background that is nearly white, specks, slight color shifts.

How an image is read (the numbers are those in `describe`):

1. The commonest light tone is the paper.
2. Every pixel is paper partly covered by one ink: `paper - pixel = coverage * (white - color)`. A pixel on a red
   circle's edge is pink, so it lies on red's ray and near no palette color. The nearest ray says which ink, the
   projection how much of it. Nearly covered pixels of one ink that hang together are the core of an object.
3. Everything within reach of a core belongs to the nearest one. So neighbors stay apart: of one color where a valley
   lies between them, of two colors even when they touch.
4. Area and centroid of the soft mask put each of the four shapes, equally large and equally blurred, over the object.
   The best overlap (intersection over union) names the shape, and must be good enough: a blob is no shape.

Lengths are shares of the image's side, y grows downwards.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from vqgan.data.sources.shapes import COLORS, EXTENTS, SHAPES, Scene, ShapeObject, parse_caption

ImageLike = Image.Image | UInt8[np.ndarray, "side side 3"]

_SPECK = 0.004
"""Share of the image's area below which a separate mark is overlooked."""
_CORE_COVERAGE = 0.72
"""Least coverage of a pixel in an object's core."""
_CORE_RESIDUAL = 0.25
"""Largest distance of a core's pixel to its ink's ray, in units of the full range of a channel."""
_COLOR_TOLERANCE = 0.25
"""Largest distance of an object's median color to the palette's, in the same unit."""
_REACH = 0.045
"""How far an object's soft edge extends beyond its core (at least 3.5 pixels)."""
_INK = 0.3
"""Darkness in any channel from which a pixel is no longer paper, and outside of all objects a mark."""
_LEAST_PAPER = 0.3
"""Least share of the image that is paper; two large squares leave 0.68."""
_PAPER = 0.15
"""Largest median darkness of the background, in any channel."""
_SOFTEST = 0.02
"""Largest blur (Gaussian sigma) of an edge that is forgiven; at least 0.8 pixels."""
_LEAST_FIT = 0.93
"""Least overlap of an object with the best shape, if pixels were infinitely fine."""
_PIXEL_LOSS = 0.6
"""How many pixels' share of an object's extent are taken from that: a small object of 8 pixels needs only 0.855."""
_LEAST_LEAD = 0.02
"""Least lead of the best shape's overlap over the second best's."""
_SIZE_TOLERANCE = 1.2
"""Largest factor between an object's extent and its size's."""

_WHITE = 255.0
_NAMES = tuple(COLORS)
_INKS = (_WHITE - np.array([COLORS[name] for name in _NAMES], np.float32)) / _WHITE  # (8, 3), what is taken from white
_INK_LENGTHS = np.sqrt((_INKS**2).sum(1))
_AREAS = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "diamond": 0.5}
"""Area of each shape whose bounding box has side 1."""
_OUTLINES = {"circle": np.pi, "square": 4.0, "triangle": 1 + np.sqrt(5), "diamond": 2 * np.sqrt(2)}
"""Length of its outline."""


class Box(NamedTuple):
    """A bounding box: its center and its sides' length."""

    x: float
    y: float
    side: float


class DetectedObject(NamedTuple):
    """One object as seen; `fit` in [0, 1] is its overlap with the ideal `shape` in `box`."""

    color: str
    shape: str
    size: str
    box: Box
    fit: float


class Description(NamedTuple):
    """All substantial objects of an image, the largest first, and what is wrong with it whatever its caption."""

    objects: tuple[DetectedObject, ...]
    problems: tuple[str, ...]


class Verdict(NamedTuple):
    """Whether an image is right, and if not, why; `reasons` is empty exactly when `correct`."""

    correct: bool
    reasons: tuple[str, ...]


def check(image: ImageLike, caption: str) -> Verdict:
    """Returns whether `image` shows what `caption` says. Raises ValueError where the caption is not of the shapes
    grammar."""
    return check_image(describe(image), caption)


def check_image(description: Description, caption: str) -> Verdict:
    """`check` for an image that is described already."""
    wanted = parse_caption(caption)
    reasons = list(description.problems)
    if len(description.objects) == 2:
        one, other = description.objects
        # Either object may be the caption's first; the reading with fewer mistakes is meant.
        fewest: list[str] = min(_mistakes(wanted, one, other), _mistakes(wanted, other, one), key=len)
        reasons += fewest
    return Verdict(not reasons, tuple(reasons))


def describe(image: ImageLike) -> Description:
    """Returns what a square RGB image shows. Raises ValueError for anything but a PIL image or uint8 (side, side,
    3)."""
    darkness = _darkness(image)
    side = len(darkness)
    least_area = _SPECK * side * side
    problems: list[str] = []

    # 1. The paper's tone is taken as white; an image that is mostly dark shows nothing.
    light = darkness.max(2) <= _INK
    if light.mean() < _LEAST_PAPER:
        return Description((), ("the background is not white",))
    paper = np.median(darkness[light], axis=0)
    if paper.max() > _PAPER:
        problems.append("the background is not white")
    darkness -= paper

    # 2. Cores: nearly covered pixels of one ink that hang together.
    coverage, residual = _inks(darkness)
    ink = residual.argmin(2)
    of_ink = ink[..., None]
    covered = np.take_along_axis(coverage, of_ink, 2)[..., 0] >= _CORE_COVERAGE
    covered &= np.take_along_axis(residual, of_ink, 2)[..., 0] <= _CORE_RESIDUAL
    cores = np.zeros((side, side), np.int32)
    core_inks: list[int] = []
    for candidate in range(len(_NAMES)):
        mine = covered & (ink == candidate)
        if mine.sum() < least_area:
            continue
        pieces, count = ndimage.label(mine)
        for piece, area in enumerate(np.bincount(pieces.ravel(), minlength=count + 1)[1:], start=1):
            if area >= least_area:
                core_inks.append(candidate)
                cores[pieces == piece] = len(core_inks)

    # 3. Every pixel within reach of a core belongs to the nearest one.
    if not core_inks:
        problems += ["the image shows no object", *_strays(darkness, np.ones((side, side), bool))]
        return Description((), tuple(problems))
    distance, nearest = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    owner = np.where(distance <= max(3.5, _REACH * side), cores[nearest[0], nearest[1]], 0)

    # 4. What each object is.
    objects: list[DetectedObject] = []
    for label, candidate in enumerate(core_inks, start=1):
        median = np.median(darkness[cores == label], axis=0)
        mask = np.where((owner == label) & (residual[..., candidate] <= _CORE_RESIDUAL), coverage[..., candidate], 0)
        thing, flaws = _recognise(mask, median)
        objects.append(thing)
        problems += flaws
    if len(objects) != 2:
        problems.insert(0, f"the image shows {_count(len(objects))}, not two")
    problems += _strays(darkness, owner == 0)
    return Description(tuple(sorted(objects, key=lambda thing: -thing.box.side)), tuple(problems))


def _darkness(image: ImageLike) -> Float[np.ndarray, "side side 3"]:
    """Returns what each pixel lacks to white, 0 to 1 a channel."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[0] != pixels.shape[1]:
        raise ValueError(
            f"an image is square RGB in uint8 (side, side, 3), received {pixels.dtype} {pixels.shape}; "
            "convert or crop it first"
        )
    return (_WHITE - pixels.astype(np.float32)) / _WHITE


def _inks(
    darkness: Float[np.ndarray, "side side 3"],
) -> tuple[Float[np.ndarray, "side side 8"], Float[np.ndarray, "side side 8"]]:
    """Of each ink, the coverage that explains a pixel best, and the distance that it leaves unexplained."""
    along = darkness @ (_INKS / _INK_LENGTHS[:, None]).T
    length = (darkness**2).sum(2, keepdims=True)
    return along / _INK_LENGTHS, np.sqrt(np.maximum(length - along**2, 0))


def _recognise(
    mask: Float[np.ndarray, "side side"], median: Float[np.ndarray, "3"]
) -> tuple[DetectedObject, tuple[str, ...]]:
    """Returns the object whose soft coverage is `mask` and whose core has the `median` darkness; and its flaws."""
    side = len(mask)
    distances = np.sqrt(((_INKS - median) ** 2).sum(1))
    color = _NAMES[int(distances.argmin())]
    # A pale or deep ink covers its core fully all the same; what is nearly white is paper.
    mask = mask / np.quantile(mask[mask >= _CORE_COVERAGE], 0.6)
    mask = np.where(mask < 0.05, 0, np.minimum(mask, 1))

    fits = {shape: _fit(mask, shape) for shape in SHAPES}
    second, best = sorted(SHAPES, key=lambda shape: fits[shape][0])[-2:]
    fit, box = fits[best]
    size = min(EXTENTS, key=lambda name: abs(np.log(box.side / EXTENTS[name])))

    flaws = []
    where = f"at ({box.x:.2f}, {box.y:.2f})"
    if distances.min() > _COLOR_TOLERANCE:
        red, green, blue = (_WHITE * (1 - median)).round().astype(int)
        flaws.append(f"the object {where} has the color ({red}, {green}, {blue}), nearest to {color} but not near")
    if fit < _LEAST_FIT - _PIXEL_LOSS / (box.side * side):
        flaws.append(f"the object {where} is no clean shape: it overlaps a {best} by {fit:.2f}")
    elif fit - fits[second][0] < _LEAST_LEAD:
        flaws.append(f"the object {where} is between a {best} and a {second}")
    if abs(np.log(box.side / EXTENTS[size])) > np.log(_SIZE_TOLERANCE):
        flaws.append(f"the object {where} has the extent {box.side:.2f}, neither small nor large")
    return DetectedObject(color, best, size, box, fit), tuple(flaws)


def _fit(mask: Float[np.ndarray, "side side"], shape: str) -> tuple[float, Box]:
    """Returns the `shape` that has the mask's area, centroid and softness: its overlap with the mask, and its box."""
    side = len(mask)
    area = float(mask.sum())
    extent = float(np.sqrt(area / _AREAS[shape]))  # in pixels
    positions = np.arange(side) + 0.5
    x, y = float(mask.sum(0) @ positions) / area, float(mask.sum(1) @ positions) / area
    if shape == "triangle":
        y -= extent / 6  # the centroid lies at two thirds of the height

    # An edge with Gaussian blur sigma has a sum of c(1 - c) of sigma / sqrt(pi) for each unit of its length; pixels of
    # side 1 alone are worth a sigma of sqrt(1/12).
    blur = float((mask * (1 - mask)).sum()) * np.sqrt(np.pi) / (_OUTLINES[shape] * extent)
    sigma = min(np.sqrt(max(blur**2 - 1 / 12, 0)), max(0.8, _SOFTEST * side))

    # Only the neighborhood matters: it holds the whole mask and the whole template.
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    reach = extent / 2 + 3 * sigma + 1
    top, bottom = max(int(min(rows[0], y - reach)), 0), min(int(max(rows[-1], y + reach)) + 1, side)
    left, right = max(int(min(columns[0], x - reach)), 0), min(int(max(columns[-1], x + reach)) + 1, side)
    template = _template(shape, (y - top, x - left), extent / 2, (bottom - top, right - left))
    if sigma > 0.1:
        template = ndimage.gaussian_filter(template, sigma, mode="constant", truncate=3)
    seen = mask[top:bottom, left:right]
    overlap = float(np.minimum(seen, template).sum() / np.maximum(seen, template).sum())
    return overlap, Box(x / side, y / side, extent / side)


def _template(
    shape: str, center: tuple[float, float], radius: float, window: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Returns the share of each pixel of a window that the ideal shape covers, counted on 4 x 4 points a pixel."""
    points = 4
    height, width = window
    y = ((np.arange(height * points) + 0.5) / points - center[0])[:, None] / radius
    x = ((np.arange(width * points) + 0.5) / points - center[1])[None, :] / radius
    inside: Bool[np.ndarray, "rows columns"]
    match shape:
        case "circle":
            inside = x**2 + y**2 <= 1
        case "square":
            inside = (abs(x) <= 1) & (abs(y) <= 1)
        case "triangle":  # apex at the top
            inside = (2 * abs(x) <= 1 + y) & (y <= 1)
        case _:
            inside = abs(x) + abs(y) <= 1
    samples = inside.reshape(height, points, width, points).transpose(1, 3, 0, 2)
    return samples.reshape(points * points, height, width).mean(0)


def _strays(darkness: Float[np.ndarray, "side side 3"], outside: Bool[np.ndarray, "side side"]) -> list[str]:
    """Marks `outside` of the objects that are too large to be specks."""
    pieces, count = ndimage.label(outside & (darkness.max(2) > _INK))
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:] / outside.size
    marks = int((areas >= _SPECK).sum())
    return [f"the image has {_count(marks, 'mark')} outside of its objects"] if marks else []


def _mistakes(wanted: Scene, first: DetectedObject, second: DetectedObject) -> list[str]:
    """Returns where `first` and `second` differ from the caption's first and second object and their relation."""
    mistakes = []
    pairs: tuple[tuple[str, ShapeObject, DetectedObject], ...] = (
        ("first", wanted.first, first),
        ("second", wanted.second, second),
    )
    for order, thing, seen in pairs:
        for is_noun, expected, received in (
            (False, thing.size, seen.size),
            (False, thing.color, seen.color),
            (True, thing.shape, seen.shape),
        ):
            if expected != received:
                article = "a " if is_noun else ""
                mistakes.append(f"the {order} object is {article}{received}, not {article}{expected}")
    relation = _relation(first.box, second.box)
    if relation != wanted.relation:
        mistakes.append(f"the first object is {relation} the second, not {wanted.relation} it")
    return mistakes


def _relation(first: Box, second: Box) -> str:
    """Returns where `first` stands, seen from `second`, along the axis on which their centers are further apart."""
    x, y = first.x - second.x, first.y - second.y
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def _count(number: int, noun: str = "object") -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"
