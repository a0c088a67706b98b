"""Labels of patches: what an image's pixels show there, whatever its caption says first."""

import numpy as np
import torch

from parti.evaluation.dense_probe import CLASSES, dense_probe, patch_labels
from parti.mim.targets import patchify
from vqgan.data.batch import Batch
from vqgan.data.sources.shapes import COLORS, Shapes, ShapesConfig, object_masks

SIZE, PATCH = 64, 8


def batch(split: str, count: int) -> Batch:
    source = Shapes(ShapesConfig(), split, SIZE)  # type: ignore[arg-type]
    samples = [source[index] for index in range(count)]
    images = torch.stack([torch.from_numpy(np.array(sample.image)).permute(2, 0, 1).float() for sample in samples])
    return Batch(images / 127.5 - 1, [sample.caption for sample in samples], [sample.name for sample in samples])


def test_the_color_of_a_patch_is_that_of_its_pixels() -> None:
    shown = batch("val", 40)
    labels = patch_labels(ShapesConfig(), "val", shown.names, SIZE, PATCH)
    assert all(numbers.shape == (40, 64) for numbers in labels.values())
    palette = torch.tensor([*COLORS.values()]) / 127.5 - 1
    patches = patchify(shown.images, PATCH).unflatten(-1, (-1, 3))
    found = 0
    for row, place in (labels["color"] >= 0).nonzero():
        pixels = patches[row, place]
        near = torch.cdist(pixels, palette).min(1)
        colors = near.indices[near.values < 0.05]  # those that an object covers as a whole
        if len(colors):
            assert colors.mode().values == labels["color"][row, place]
            found += 1
    assert found > 500
    paper = labels["object"] < 0
    assert (labels["shape"][paper] == -1).all()
    assert ((patches < 0.99).any(-1).float().mean(-1)[paper] <= 0.5).all()


def test_the_first_object_is_the_upper_or_left_one() -> None:
    shown = batch("train", 40)
    labels = patch_labels(ShapesConfig(), "train", shown.names, SIZE, PATCH)["object"].view(40, 8, 8)
    for grid, caption in zip(labels, shown.texts(), strict=True):
        axis = 0 if " above " in caption or " below " in caption else 1
        centers = [(grid == number).nonzero()[:, axis].float().mean() for number in (0, 1)]
        assert centers[0] < centers[1]


def test_masks_cover_what_is_drawn() -> None:
    source = Shapes(ShapesConfig(), "val", SIZE)
    for index in range(10):
        masks = object_masks(*source.scene(index), SIZE)
        drawn = (np.array(source[index].image) < 250).any(-1)
        assert (drawn == (masks.sum(0) > 0.05)).mean() > 0.98


def test_pixels_say_color_and_not_shape() -> None:
    train, test = [batch("train", 80)], [batch("val", 40)]
    found = dense_probe(lambda images: [patchify(images, PATCH)], train, test, ShapesConfig(), SIZE, PATCH)
    assert found.linear.keys() == CLASSES.keys()
    assert found.linear["color"] > 0.6
    assert found.linear["shape"] < found.linear["color"]
