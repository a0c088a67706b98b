"""Labels of images that an encoder can be probed for: attributes of shapes, or captions that are names of classes.

Of a shapes image only what it shows is a label: "A above B" and "B below A" draw the same, so objects are named by
where they are. The first object is the upper or the left one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from vqgan.data.sources.shapes import COLORS, EXTENTS, SHAPES, parse_caption
from vqgan.errors import ConfigError

_MOST_CLASSES = 1000
SHAPES_CLASSES = {
    "axis": 2,
    **{
        f"{what}_{which}": count
        for what, count in (("color", len(COLORS)), ("shape", len(SHAPES)), ("size", 2))
        for which in ("a", "b")
    },
}
"""Number of classes of each attribute."""


def shapes_attributes(captions: Sequence[str]) -> dict[str, Int64[Tensor, "N"]]:
    """The attributes of images with these captions. Raises ValueError for a caption of another data set."""
    rows = []
    for caption in captions:
        scene = parse_caption(caption)
        objects = [scene.first, scene.second]
        first, second = objects if scene.relation in ("above", "left of") else objects[::-1]
        row = {"axis": int(scene.relation in ("left of", "right of"))}
        for which, thing in (("a", first), ("b", second)):
            row[f"color_{which}"] = list(COLORS).index(thing.color)
            row[f"shape_{which}"] = SHAPES.index(thing.shape)
            row[f"size_{which}"] = list(EXTENTS).index(thing.size)
        rows.append(row)
    return {name: torch.tensor([row[name] for row in rows]) for name in SHAPES_CLASSES}


class CaptionClasses:
    """Captions as names of classes, those of the training images. Raises ConfigError where they are no such names."""

    def __init__(self, captions: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(sorted(set(captions)))}
        if not 2 <= len(self._numbers) <= min(_MOST_CLASSES, len(captions) // 2):
            raise ConfigError(
                f"data.source: {len(captions)} training images have {len(self._numbers)} different captions, which is "
                "no set of classes; give images whose caption is the name of their class, a few for each"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def __call__(self, captions: Sequence[str]) -> Int64[Tensor, "N"]:
        """The class of each caption; -1 for one that no training image has."""
        return torch.tensor([self._numbers.get(caption, -1) for caption in captions])
