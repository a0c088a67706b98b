"""The `shapes` data set: a function of (seed, split, index), with splits that test composition."""

import random
import zlib

import numpy as np
import pytest

from vqgan.data.source import Split
from vqgan.data.sources.shapes import (
    COLORS,
    EXTENTS,
    RELATIONS,
    SHAPES,
    Scene,
    ShapeObject,
    Shapes,
    ShapesConfig,
    combinations,
    parse_caption,
    render,
)

SPLITS: tuple[Split, ...] = ("train", "val")


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_a_function_of_seed_split_and_index(split: Split) -> None:
    one, again = Shapes(ShapesConfig(seed=1), split, 32), Shapes(ShapesConfig(seed=1), split, 32)
    order = list(range(50))
    random.Random(0).shuffle(order)
    shuffled = {index: again[index] for index in order}
    for index in range(50):
        assert one[index].caption == shuffled[index].caption
        assert one[index].image.tobytes() == shuffled[index].image.tobytes()
        assert one[index].name == f"shapes-{index}"


def test_seeds_splits_and_indices_differ() -> None:
    def captions(seed: int, split: Split) -> list[str | None]:
        source = Shapes(ShapesConfig(seed=seed), split, 8)
        return [source[index].caption for index in range(100)]

    assert captions(0, "train") != captions(1, "train")
    assert captions(0, "train") != captions(0, "val")
    assert len(set(captions(0, "train"))) > 90


def test_the_size_of_the_image_does_not_change_the_scene() -> None:
    small, large = (Shapes(ShapesConfig(), "train", size) for size in (16, 64))
    assert [small.scene(index) for index in range(100)] == [large.scene(index) for index in range(100)]


def test_one_tenth_of_the_combinations_is_val() -> None:
    train, val = map(combinations, SPLITS)
    assert (len(train), len(val)) == (922, 102)
    assert not set(train) & set(val)
    assert len(set(train) | set(val)) == (len(COLORS) * len(SHAPES)) ** 2
    # Each color and shape, in each place, occurs in training: what is held out is only how they combine.
    for place in range(4):
        assert {combination[place] for combination in train} == {combination[place] for combination in val}


@pytest.mark.parametrize("split", SPLITS)
def test_samples_keep_to_the_combinations_of_their_split(split: Split) -> None:
    source, allowed = Shapes(ShapesConfig(), split, 8), set(combinations(split))
    for index in range(1000):
        first, _, second = source.scene(index)[0]
        assert (first.color, first.shape, second.color, second.shape) in allowed


def test_the_val_combinations_never_change() -> None:
    # Metrics in the documentation and stored models depend on them.
    assert zlib.crc32(repr(combinations("val")).encode()) == 2325022170


def test_captions_round_trip() -> None:
    for size in EXTENTS:
        for color in COLORS:
            for shape in SHAPES:
                for relation in RELATIONS:
                    scene = Scene(ShapeObject(size, color, shape), relation, ShapeObject("large", "cyan", "triangle"))
                    assert parse_caption(str(scene)) == scene
    assert parse_caption("  A small RED circle  left of a large cyan\ntriangle ") == Scene(
        ShapeObject("small", "red", "circle"), "left of", ShapeObject("large", "cyan", "triangle")
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle above a blue square",
        "a small red circle",
        "a small red circle near a small blue square",
        "a small red circle above a small blue square.",
        "a small pink circle above a small blue square",
    ],
)
def test_other_texts_are_no_captions(text: str) -> None:
    with pytest.raises(ValueError, match="not a shapes caption"):
        parse_caption(text)


def test_a_scene_is_the_same_image_at_every_size() -> None:
    source = Shapes(ShapesConfig(), "train", 32)
    for index in range(60):
        scene, places = source.scene(index)
        small = np.asarray(render(scene, places, 32), np.float32)
        large = np.asarray(render(scene, places, 128), np.float32).reshape(32, 4, 32, 4, 3).mean((1, 3))
        assert abs(small - large).mean() < 0.8  # of 255
        assert abs(small - large).max() < 80  # a corner's pixel; the outline is smoothed by a pixel's width


def test_objects_are_inside_and_apart_and_related_as_said() -> None:
    source = Shapes(ShapesConfig(seed=7), "train", 8)
    for index in range(5000):
        (first, relation, second), places = source.scene(index)
        radii = [EXTENTS[thing.size] / 2 for thing in (first, second)]
        for place, radius in zip(places, radii, strict=True):
            assert min(*place) - radius >= 0.02
            assert max(*place) + radius <= 0.98
        right, down = places[1].x - places[0].x, places[1].y - places[0].y
        along = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
        across = down if relation in ("left of", "right of") else right
        assert along - sum(radii) >= 0.0299  # the gap between the bounding boxes
        assert along > abs(across)


def test_images_have_white_paper_and_the_palette_s_colors() -> None:
    source = Shapes(ShapesConfig(), "train", 64)
    for index in range(50):
        scene, places = source.scene(index)
        image = source[index].image
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        for thing, place in zip((scene.first, scene.second), places, strict=True):
            assert image.getpixel((int(place.x * 64), int(place.y * 64))) == COLORS[thing.color]


def test_lengths_follow_the_config() -> None:
    config = ShapesConfig(train_size=7, val_size=5)
    assert [len(Shapes(config, split, 8)) for split in SPLITS] == [7, 5]
