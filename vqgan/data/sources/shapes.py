"""`shapes`: an endless captioned data set that needs no files, with a validation split that tests composition.

Two objects on white, e.g. "a small red circle above a large blue square". A sample is a function of (seed, split,
index) alone. One tenth of the (color, shape, color, shape) combinations never occurs in the training split and
makes up the validation split, so a model that draws validation captions correctly has composed what it learned.

Lengths are shares of the image's side, y grows downwards.
"""

import itertools
import random
import re
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from pydantic import Field

from vqgan.config.schema import Config
from vqgan.data.source import Sample, Split

COLORS = {
    "red": (225, 35, 35),
    "green": (35, 160, 60),
    "blue": (40, 75, 225),
    "yellow": (250, 215, 40),
    "purple": (150, 50, 185),
    "orange": (255, 135, 20),
    "black": (20, 20, 20),
    "cyan": (45, 205, 230),
}
SHAPES = ("circle", "square", "triangle", "diamond")
EXTENTS = {"small": 0.25, "large": 0.40}
"""Side of the bounding box of every shape of that size."""
RELATIONS = ("above", "below", "left of", "right of")

_MARGIN = 0.03
"""Least distance of an object to the image's edge and to its half's border."""
_SIDEWAYS = 0.12
"""Largest distance of a center from the middle line that runs along the relation."""
_VAL_SHARE = 0.1


class ShapeObject(NamedTuple):
    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.color} {self.shape}"


class Scene(NamedTuple):
    """What a caption says: `first` is `relation` (above, ...) `second`."""

    first: ShapeObject
    relation: str
    second: ShapeObject

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}"


class Placement(NamedTuple):
    """Where an object stands: its bounding box's center, in shares of the side."""

    x: float
    y: float


def parse_caption(caption: str) -> Scene:
    """Returns the scene that a caption of this data set describes. Raises ValueError for any other text."""
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        raise ValueError(
            f"not a shapes caption: {caption!r}; write 'a {{small|large}} {{color}} {{shape}} "
            "{above|below|left of|right of} a {small|large} {color} {shape}'"
        )
    size1, color1, shape1, relation, size2, color2, shape2 = match.groups()
    return Scene(ShapeObject(size1, color1, shape1), relation, ShapeObject(size2, color2, shape2))


def combinations(split: Split) -> list[tuple[str, str, str, str]]:
    """Returns the (color, shape, color, shape) combinations of a split; fixed, whatever the seed."""
    everything = list(itertools.product(COLORS, SHAPES, COLORS, SHAPES))
    val = set(random.Random("shapes held out").sample(everything, round(_VAL_SHARE * len(everything))))
    return [combination for combination in everything if (combination in val) == (split == "val")]


def render(scene: Scene, placements: tuple[Placement, Placement], size: int) -> Image.Image:
    """Renders a scene on white, anti-aliased, `size` x `size` pixels."""
    canvas = np.full((size, size, 3), 255, np.float32)
    for thing, place in zip((scene.first, scene.second), placements, strict=True):
        cover = _coverage(thing.shape, place, EXTENTS[thing.size] / 2, size)[..., None]
        canvas += cover * (np.asarray(COLORS[thing.color], np.float32) - canvas)
    return Image.fromarray(canvas.round().astype(np.uint8))


def object_masks(scene: Scene, placements: tuple[Placement, Placement], size: int) -> Float[np.ndarray, "2 size size"]:
    """Share of each pixel that the first and the second object cover, in an image of `size` x `size` pixels."""
    pairs = zip((scene.first, scene.second), placements, strict=True)
    return np.stack([_coverage(thing.shape, place, EXTENTS[thing.size] / 2, size) for thing, place in pairs])


class ShapesConfig(Config, may_change=("kind", "seed", "train_size", "val_size")):
    """Procedural images of two shapes with captions; no files needed."""

    kind: Literal["shapes"] = "shapes"
    """Two colored shapes in a relation, rendered on the fly."""
    seed: int = Field(0, ge=0)
    """Which images: a sample is a function of (seed, split, index)."""
    train_size: int = Field(100_000, gt=0)
    """Number of training images before they repeat."""
    val_size: int = Field(1024, gt=0)
    """Number of validation images."""


class Shapes:
    """The `shapes` source: `size` x `size` images of one split."""

    def __init__(self, config: ShapesConfig, split: Split, size: int) -> None:
        self.size = size
        self._key = (config.seed, ("train", "val").index(split))
        self._length = config.train_size if split == "train" else config.val_size
        self._combinations = combinations(split)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        scene, placements = self.scene(index)
        return Sample(render(scene, placements, self.size), str(scene), f"shapes-{index}")

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the caption without rendering the image."""
        return (str(self.scene(index)[0]),)

    def scene(self, index: int) -> tuple[Scene, tuple[Placement, Placement]]:
        """Returns what sample `index` shows and where."""
        rng = np.random.default_rng((*self._key, index))
        color1, shape1, color2, shape2 = self._combinations[rng.integers(len(self._combinations))]
        size1, size2 = (("small", "large")[i] for i in rng.integers(2, size=2))
        scene = Scene(
            ShapeObject(size1, color1, shape1), RELATIONS[rng.integers(4)], ShapeObject(size2, color2, shape2)
        )
        return scene, _place(scene, rng)


def _place(scene: Scene, rng: np.random.Generator) -> tuple[Placement, Placement]:
    """Jittered centers: each object in its own half, wherever it fits, and near the middle line across."""

    def center(thing: ShapeObject, first_half: bool) -> tuple[float, float]:
        radius = EXTENTS[thing.size] / 2
        along = rng.uniform(radius + _MARGIN, 0.5 - radius - _MARGIN / 2)
        across = 0.5 + rng.uniform(-_SIDEWAYS, _SIDEWAYS)
        return (along if first_half else 1 - along), across

    first_leads = scene.relation in ("above", "left of")
    first, second = center(scene.first, first_leads), center(scene.second, not first_leads)
    if scene.relation in ("above", "below"):
        first, second = first[::-1], second[::-1]
    return Placement(*first), Placement(*second)


def _coverage(shape: str, place: Placement, radius: float, size: int) -> Float[np.ndarray, "size size"]:
    """Returns the share of each pixel that a shape covers, from the signed distance of the pixel's center to its
    outline."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = grid[None, :] - place.x, grid[:, None] - place.y
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(abs(x), abs(y)) - radius
    elif shape == "diamond":
        distance = (abs(x) + abs(y) - radius) / np.sqrt(2)
    else:  # triangle: apex at the top, base along the bottom of the bounding box
        distance = np.maximum((2 * abs(x) - y - radius) / np.sqrt(5), y - radius)
    return np.clip(0.5 - distance * size, 0, 1)


_THING = rf"a (small|large) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING} ({'|'.join(RELATIONS)}) {_THING}")
