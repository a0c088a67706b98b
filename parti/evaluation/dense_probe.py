"""What a patch's own features say about it: which object of a shapes image it shows, of what shape and color.

An image has as many labels as patches, so this probe varies less than those of whole images; and the shape of an
object is nothing that one patch shows, but what the encoder has found out around it.

Legend: B batch, N patches, n patches of all images, D features.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from parti.evaluation.probes import Probed, probe
from vqgan.data.batch import Batch
from vqgan.data.source import Split
from vqgan.data.sources.shapes import COLORS, SHAPES, Shapes, ShapesConfig, object_masks

CLASSES = {"object": 2, "shape": len(SHAPES), "color": len(COLORS)}
"""Of each patch that shows an object."""
LEAST_SHARE = 0.25
"""Of a patch that an object covers, from which on it shows it."""
Features = Callable[[Float[Tensor, "B 3 H W"]], Sequence[Float[Tensor, "B N D"]]]


def patch_labels(
    config: ShapesConfig, split: Split, names: Sequence[str], size: int, patch_size: int
) -> dict[str, Tensor]:
    """The labels (B, N) of images of that split, -1 where no object is; which object is which is said by their places,
    not by the caption."""
    source, rows = Shapes(config, split, size), []
    for name in names:
        scene, places = source.scene(int(name.removeprefix("shapes-")))
        things, masks = [scene.first, scene.second], object_masks(scene, places, size)
        if scene.relation not in ("above", "left of"):
            things, masks = things[::-1], masks[::-1]
        side = size // patch_size
        shares = masks.reshape(2, side, patch_size, side, patch_size).mean((2, 4)).reshape(2, -1)
        shown = np.where(shares.max(0) >= LEAST_SHARE, shares.argmax(0) + 1, 0)
        of_object = {
            "object": [-1, 0, 1],
            "shape": [-1, *(SHAPES.index(thing.shape) for thing in things)],
            "color": [-1, *(list(COLORS).index(thing.color) for thing in things)],
        }
        rows.append({label: torch.tensor(numbers)[shown] for label, numbers in of_object.items()})
    return {label: torch.stack([row[label] for row in rows]) for label in CLASSES}


def dense_probe(
    features: Features,
    train: Sequence[Batch],
    test: Sequence[Batch],
    config: ShapesConfig,
    size: int,
    patch_size: int,
) -> Probed:
    """A linear probe and neighbors as in `parti.evaluation.probes`, of the patches that show an object."""
    seen, seen_labels = _flat(features, train, config, "train", size, patch_size)
    unseen, unseen_labels = _flat(features, test, config, "val", size, patch_size)
    return probe(seen, unseen, seen_labels, unseen_labels, CLASSES)


@torch.no_grad()
def _flat(
    features: Features, batches: Sequence[Batch], config: ShapesConfig, split: Split, size: int, patch_size: int
) -> tuple[list[Float[Tensor, "n D"]], dict[str, Int64[Tensor, "n"]]]:
    labels = [patch_labels(config, split, batch.names, size, patch_size) for batch in batches]
    shown = [numbers["object"] >= 0 for numbers in labels]
    layers = [
        [states.float().cpu()[rows] for states in features(batch.images)]
        for batch, rows in zip(batches, shown, strict=True)
    ]
    return (
        [torch.cat(layer) for layer in zip(*layers, strict=True)],
        {label: torch.cat([one[label][rows] for one, rows in zip(labels, shown, strict=True)]) for label in CLASSES},
    )
