"""The checker agrees with real images and their captions, and with nothing else."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from vqgan.data.sources.shapes import (
    COLORS,
    EXTENTS,
    RELATIONS,
    SHAPES,
    Placement,
    Scene,
    ShapeObject,
    Shapes,
    ShapesConfig,
    parse_caption,
    render,
)
from vqgan.metrics.shapes_checker import Description, check, check_image, describe

IMAGES = 1000


@dataclasses.dataclass(frozen=True)
class Seen:
    scene: Scene
    description: Description


@cache
def val(size: int) -> tuple[Seen, ...]:
    source = Shapes(ShapesConfig(seed=3), "val", size)
    samples = (source[index] for index in range(IMAGES))
    return tuple(Seen(parse_caption(sample.caption or ""), describe(sample.image)) for sample in samples)


def share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def degrade(image: Image.Image, blur: float, noise: float, seed: int) -> np.ndarray:
    pixels = ndimage.gaussian_filter(np.asarray(image, np.float32), (blur, blur, 0))
    pixels = pixels + np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8)


def other(options: Sequence[str], value: str, rng: random.Random) -> str:
    return rng.choice([option for option in options if option != value])


def altered(scene: Scene, field: str, rng: random.Random) -> Scene:
    """The scene with one attribute changed: "relation", or e.g. "first.color"."""
    if field == "relation":
        return scene._replace(relation=other(RELATIONS, scene.relation, rng))
    which, attribute = field.split(".")
    options = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(EXTENTS)}[attribute]
    thing: ShapeObject = getattr(scene, which)
    return scene._replace(**{which: thing._replace(**{attribute: other(options, getattr(thing, attribute), rng)})})


def same_image(one: Scene, another: Scene) -> bool:
    opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    return another in (one, Scene(one.second, opposite[one.relation], one.first))


@pytest.mark.parametrize("size", [32, 64])
def test_real_images_are_right(size: int) -> None:
    assert share([check_image(seen.description, str(seen.scene)).correct for seen in val(size)]) >= 0.99


FIELDS = [f"{which}.{attribute}" for which in ("first", "second") for attribute in ("size", "color", "shape")]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("field", [*FIELDS, "relation"])
def test_one_changed_attribute_is_wrong_and_named(field: str, size: int) -> None:
    rng = random.Random(field)
    verdicts = []
    for seen in val(size):
        caption = altered(seen.scene, field, rng)
        verdict = check_image(seen.description, str(caption))
        assert verdict.correct == (not verdict.reasons)
        verdicts.append(same_image(caption, seen.scene) or not verdict.correct)
    assert share(verdicts) >= 0.99


@pytest.mark.parametrize("size", [32, 64])
def test_captions_of_other_images_are_wrong(size: int) -> None:
    images = val(size)
    verdicts = [
        not check_image(seen.description, str(stranger.scene)).correct
        for seen, stranger in itertools.pairwise(images)
        if not same_image(seen.scene, stranger.scene)
    ]
    assert len(verdicts) > 0.99 * (IMAGES - 1)
    assert share(verdicts) >= 0.99


@pytest.mark.parametrize(("size", "blur"), [(64, 0.7), (64, 1.2), (32, 0.5)])
def test_blurred_and_noisy_images_are_right(size: int, blur: float) -> None:
    source = Shapes(ShapesConfig(seed=4), "val", size)
    samples = [source[index] for index in range(200)]
    verdicts = [
        check(degrade(sample.image, blur, 6, index), sample.caption or "").correct
        for index, sample in enumerate(samples)
    ]
    assert share(verdicts) >= 0.97


def test_slightly_other_colors_are_right() -> None:
    source = Shapes(ShapesConfig(seed=4), "val", 64)
    verdicts = []
    for index in range(200):
        sample, rng = source[index], np.random.default_rng(index)
        pixels = np.asarray(sample.image, np.float32) * 0.94 + 6 + rng.uniform(-8, 8, 3)
        verdicts.append(check(pixels.clip(0, 255).astype(np.uint8), sample.caption or "").correct)
    assert share(verdicts) >= 0.99


def test_either_object_may_be_named_first() -> None:
    image = drawing(square((0.25, 0.5), 0.25, "red"), square((0.75, 0.5), 0.25, "blue"))
    assert check(image, "a small red square left of a small blue square").correct
    assert check(image, "a small blue square right of a small red square").correct
    alike = drawing(square((0.25, 0.5), 0.25, "red"), square((0.75, 0.5), 0.25, "red"))
    assert check(alike, "a small red square left of a small red square").correct
    assert check(alike, "a small red square right of a small red square").correct
    assert not check(alike, "a small red square above a small red square").correct


def test_reasons_name_object_value_and_wish() -> None:
    image = drawing(square((0.25, 0.5), 0.25, "red"), circle((0.75, 0.5), 0.40, "blue"))

    def reasons(caption: str) -> tuple[str, ...]:
        return check(image, caption).reasons

    assert reasons("a small red square left of a large blue circle") == ()
    assert reasons("a small red triangle left of a large blue circle") == (
        "the first object is a square, not a triangle",
    )
    assert reasons("a small red square left of a large cyan circle") == ("the second object is blue, not cyan",)
    assert reasons("a small red square left of a small blue circle") == ("the second object is large, not small",)
    assert reasons("a small red square above a large blue circle") == (
        "the first object is left of the second, not above it",
    )


def test_boxes_are_where_the_objects_were_put() -> None:
    scene = parse_caption("a large green triangle left of a small black diamond")
    places = (Placement(0.24, 0.55), Placement(0.8, 0.4))
    objects = describe(render(scene, places, 64)).objects
    for thing, place, side in zip(objects, places, (0.40, 0.25), strict=True):
        assert thing.box == pytest.approx((*place, side), abs=0.01)
        assert thing.fit > 0.95


Draw = Callable[[ImageDraw.ImageDraw, int], None]


def drawing(*draws: Draw, size: int = 64) -> Image.Image:
    """An image drawn by Pillow: not by the renderer whose images the checker is made for."""
    large = Image.new("RGB", (8 * size, 8 * size), "white")
    for draw in draws:
        draw(ImageDraw.Draw(large), 8 * size)
    return large.resize((size, size), Image.Resampling.BOX)


def corners(center: tuple[float, float], extent: float, unit: int) -> list[float]:
    return [(c + sign * extent / 2) * unit for sign in (-1, 1) for c in center]


def square(center: tuple[float, float], extent: float, color: str) -> Draw:
    return lambda canvas, unit: canvas.rectangle(corners(center, extent, unit), fill=COLORS[color])


def circle(center: tuple[float, float], extent: float, color: str) -> Draw:
    return lambda canvas, unit: canvas.ellipse(corners(center, extent, unit), fill=COLORS[color])


def polygon(color: str, *points: tuple[float, float]) -> Draw:
    return lambda canvas, unit: canvas.polygon([(x * unit, y * unit) for x, y in points], fill=COLORS[color])


RED, BLUE = square((0.25, 0.5), 0.40, "red"), circle((0.75, 0.5), 0.40, "blue")
CAPTION = "a large red square left of a large blue circle"


def test_touching_objects_of_two_colors_stay_two() -> None:
    image = drawing(square((0.295, 0.5), 0.40, "red"), square((0.70, 0.5), 0.40, "yellow"))
    assert check(degrade(image, 0.7, 6, 0), "a large red square left of a large yellow square").correct


@pytest.mark.parametrize("size", [32, 64, 128])
def test_specks_are_overlooked_and_third_objects_are_not(size: int) -> None:
    def image(*more: Draw) -> Image.Image:
        return drawing(RED, BLUE, *more, size=size)

    assert check(image(), CAPTION).correct
    assert check(image(square((0.5, 0.1), 0.04, "black")), CAPTION).correct
    assert "3 objects" in check(image(square((0.5, 0.12), 0.15, "green")), CAPTION).reasons[0]
    assert not check(image(square((0.25, 0.5), 0.15, "green")), CAPTION).correct
    gray = image(lambda canvas, unit: canvas.rectangle(corners((0.5, 0.12), 0.15, unit), fill=(150, 120, 110)))
    assert check(gray, CAPTION).reasons == ("the image has one mark outside of its objects",)


def test_images_without_two_clean_objects_are_wrong() -> None:
    def reasons(*draws: Draw) -> str:
        verdict = check(drawing(*draws), CAPTION)
        assert not verdict.correct
        return "; ".join(verdict.reasons)

    assert reasons() == "the image shows no object"
    assert reasons(RED) == "the image shows one object, not two"
    assert "one object" in reasons(square((0.4, 0.5), 0.40, "red"), circle((0.6, 0.5), 0.40, "red"))
    assert "not a circle" in reasons(RED, square((0.75, 0.5), 0.40, "blue"))
    dented = polygon("red", (0.05, 0.3), (0.45, 0.3), (0.3, 0.5), (0.45, 0.7), (0.05, 0.7))
    assert "no clean shape" in reasons(dented, BLUE)
    upside_down = polygon("red", (0.05, 0.3), (0.45, 0.3), (0.25, 0.7))
    assert "no clean shape" in reasons(upside_down, BLUE)
    turned = polygon("red", (0.25, 0.22), (0.53, 0.44), (0.31, 0.72), (0.03, 0.50))
    assert "no clean shape" in reasons(turned, BLUE)
    assert "neither small nor large" in reasons(square((0.25, 0.5), 0.32, "red"), BLUE)
    two_tone = (polygon("red", (0.05, 0.3), (0.25, 0.3), (0.25, 0.7), (0.05, 0.7)), square((0.35, 0.5), 0.2, "green"))
    assert "3 objects" in reasons(*two_tone, BLUE)


def test_noise_gray_and_colored_paper_are_wrong() -> None:
    rng = np.random.default_rng(0)
    assert not check(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), CAPTION).correct
    assert not check(np.full((64, 64, 3), 128, np.uint8), CAPTION).correct
    assert not check(np.zeros((64, 64, 3), np.uint8), CAPTION).correct
    paper = (np.asarray(drawing(RED, BLUE)).astype(np.float32) * 0.75).astype(np.uint8)
    assert "the background is not white" in check(paper, CAPTION).reasons


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_is_no_image_or_no_caption_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"square RGB in uint8 .* received float32 \(64, 64, 3\)"):
        describe(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"received uint8 \(64, 32, 3\)"):
        describe(Image.new("RGB", (32, 64)))
    with pytest.raises(ValueError, match="not a shapes caption"):
        check(drawing(RED, BLUE), "a nice image")
