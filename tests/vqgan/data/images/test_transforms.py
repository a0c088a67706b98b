"""Crops take what they say, resizing low-passes, and images survive the way to a tensor and back."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vqgan.data.images import transforms
from vqgan.data.images.area import shrink_by_area
from vqgan.data.images.transforms import ImageTransform, TransformConfig, _random_square, to_pil


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def levels(image: torch.Tensor) -> np.ndarray:
    return np.asarray(to_pil(image[None])[0])


def thirds() -> Image.Image:
    """90 x 30: a red, a green and a blue square side by side."""
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 255, 0), (30, 0, 60, 30))
    image.paste((0, 0, 255), (60, 0, 90, 30))
    return image


def test_a_image_of_the_right_size_passes_bit_for_bit_and_comes_back() -> None:
    image = noise(32, 32)
    tensor = ImageTransform(TransformConfig(image_size=32))(image, None)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 32, 32)
    assert tensor.is_contiguous()
    assert torch.equal(tensor[:, 3, 5], torch.tensor(image.getpixel((5, 3))) / 127.5 - 1)
    assert np.array_equal(levels(tensor), np.asarray(image))


def test_all_256_levels_survive_and_the_range_is_exact() -> None:
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None], 3, axis=2))
    tensor = ImageTransform(TransformConfig(image_size=16))(ramp, None)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(levels(tensor), np.asarray(ramp))


def test_center_takes_the_middle_without_resampling_it() -> None:
    image = noise(75, 32)
    tensor = ImageTransform(TransformConfig(image_size=32))(image, None)
    assert np.array_equal(levels(tensor), np.asarray(image)[:, 21:53])


def test_center_pad_and_stretch_show_what_they_say() -> None:
    shown = {
        crop: levels(ImageTransform(TransformConfig(image_size=30, crop=crop, background="#000000"))(thirds(), None))
        for crop in ("center", "pad", "stretch")
    }
    assert (shown["center"] == (0, 255, 0)).all()
    # pad: a strip of 30 x 10 in the middle of black
    assert (shown["pad"][:10] == 0).all()
    assert (shown["pad"][20:] == 0).all()
    for image in (shown["pad"], shown["stretch"]):
        assert [tuple(image[15, x]) for x in (4, 15, 25)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert (shown["stretch"][0] == shown["stretch"][29]).all()


@pytest.mark.parametrize("crop", ["center", "random", "dalle_tokenizer", "dalle_transformer", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 3), (33, 32)])
def test_any_shape_of_image_fits(crop: str, size: tuple[int, int]) -> None:
    transform = ImageTransform(TransformConfig.model_validate({"image_size": 16, "crop": crop, "flip": True}))
    for rng in (None, np.random.default_rng(0)):
        tensor = transform(noise(*size), rng)
        assert tensor.shape == (3, 16, 16)
        assert tensor.abs().max() <= 1


def test_shrinking_is_antialiased() -> None:
    board = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    tensor = ImageTransform(TransformConfig(image_size=32))(board, None)
    assert tensor.abs().max() < 0.05, "a fine checkerboard seen from afar is gray"


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (31, 200), (20, 24)])
def test_resizing_is_pillows_lanczos(size: tuple[int, int]) -> None:
    image = noise(*size)
    shown = levels(ImageTransform(TransformConfig(image_size=32, crop="stretch"))(image, None)).astype(int)
    assert np.abs(shown - np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))).max() <= 2


@pytest.mark.parametrize("crop", ["random", "dalle_tokenizer", "dalle_transformer"])
def test_evaluation_is_deterministic_and_centered(crop: str) -> None:
    image = noise(75, 40)
    config = TransformConfig.model_validate({"image_size": 32, "crop": crop, "flip": True})
    assert torch.equal(ImageTransform(config)(image, None), ImageTransform(TransformConfig(image_size=32))(image, None))
    assert config.evaluation_crop == "center"
    assert TransformConfig(crop="pad").evaluation_crop == "pad"


def test_random_crops_differ_reproducibly_and_reach_both_ends() -> None:
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], 30, 0).repeat(3, 2))
    transform = ImageTransform(TransformConfig(image_size=16, crop="random"))
    once, again = ([transform(ramp, rng) for _ in range(100)] for rng in map(np.random.default_rng, (0, 0)))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    left_edges = [float(image[0, 0, 0]) for image in once]
    assert min(left_edges) < -0.9
    assert max(float(image[0, 0, -1]) for image in once) > 0.9
    assert len(set(left_edges)) > 20


@pytest.mark.parametrize("size", [(11, 8), (8, 11)])
def test_a_random_crop_is_at_every_place_the_last_row_and_column_too(size: tuple[int, int]) -> None:
    image = noise(*size)
    transform = ImageTransform(TransformConfig(image_size=8, crop="random", smallest_crop=1.0))  # so without resampling
    pixels, places = np.asarray(image), set()
    for number in range(200):
        shown = levels(transform(image, np.random.default_rng(number)))
        places |= {
            (left, top)
            for left in range(size[0] - 7)
            for top in range(size[1] - 7)
            if np.array_equal(shown, pixels[top : top + 8, left : left + 8])
        }
    assert places == {(left, top) for left in range(size[0] - 7) for top in range(size[1] - 7)}


def test_a_random_crop_has_every_side_and_every_place_equally_often() -> None:
    boxes = [_random_square((9, 6), 0.5, np.random.default_rng(number)) for number in range(4000)]
    assert all(right - left == bottom - top for left, top, right, bottom in boxes)
    sides = Counter(right - left for left, _, right, _ in boxes)
    assert set(sides) == {3, 4, 5, 6}
    for side in sides:
        lefts = Counter(left for left, _, right, _ in boxes if right - left == side)
        tops = Counter(top for left, top, right, _ in boxes if right - left == side)
        for places, room in ((lefts, 9 - side), (tops, 6 - side)):
            assert set(places) == set(range(room + 1)), "to the last column and row"
            assert min(places.values()) > 0.6 * sides[side] / (room + 1)


# --- DALL-E's crops (arXiv 2102.12092, listings 1 and 2) ----------------------------------------------------------


def gradients(width: int, height: int) -> Image.Image:
    """Red grows by 2 a pixel to the right, green by 2 a pixel downwards: the corners of a crop tell where it was."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([2 * x, 2 * y, 0 * x], axis=2).astype(np.uint8))


def extents(crop: str, image: Image.Image, size: int, count: int = 600) -> np.ndarray:
    """(left, right, top, bottom) in pixels of the image for many random crops of `size`."""
    transform = ImageTransform(TransformConfig.model_validate({"image_size": size, "crop": crop}))
    found = []
    for number in range(count):
        shown = levels(transform(image, np.random.default_rng((5, number)))).astype(float) / 2
        half_step_x, half_step_y = (shown[0, -1, 0] - shown[0, 0, 0], shown[-1, 0, 1] - shown[0, 0, 1])
        half_step_x, half_step_y = half_step_x / (size - 1) / 2, half_step_y / (size - 1) / 2
        found.append(
            (
                shown[0, 0, 0] + 0.5 - half_step_x,
                shown[0, -1, 0] + 0.5 + half_step_x,
                shown[0, 0, 1] + 0.5 - half_step_y,
                shown[-1, 0, 1] + 0.5 + half_step_y,
            )
        )
    return np.array(found)


@pytest.mark.parametrize(
    ("crop", "least", "most"), [("dalle_tokenizer", 9 / 8, 12 / 8), ("dalle_transformer", 1, 9 / 8)]
)
def test_dalle_crops_shrink_by_what_the_listing_says(crop: str, least: float, most: float) -> None:
    size, shorter = 32, 90
    left, right, top, bottom = extents(crop, gradients(120, shorter), size).T
    shown = right - left
    assert np.abs(shown - (bottom - top)).max() < 1.5, "the image keeps its proportions"
    sides = shorter * size / shown  # of the shrunken square
    assert sides.min() == pytest.approx(least * size, abs=0.6)
    assert sides.max() == pytest.approx(most * size, abs=0.6)
    assert sides.mean() == pytest.approx((least + most) / 2 * size, abs=0.5), "uniform"


def test_the_tokenizer_sees_all_of_the_image_and_the_transformer_its_middle() -> None:
    wide = gradients(120, 40)
    left, right, top, bottom = extents("dalle_tokenizer", wide, 32).T
    assert (left.min(), top.min()) == pytest.approx((0, 0), abs=0.6)
    assert (right.max(), bottom.max()) == pytest.approx((120, 40), abs=0.6)
    left, right, top, bottom = extents("dalle_transformer", wide, 32).T
    # The square's offset is in 30 ... 49 of 80; the crop is at most an eighth smaller.
    assert left.min() == pytest.approx(30, abs=0.6)
    assert right.max() == pytest.approx(49 + 40, abs=0.6)
    assert (top.min(), bottom.max()) == pytest.approx((0, 40), abs=0.6)


def test_a_dalle_crop_is_the_listings_steps_one_after_the_other() -> None:
    """With the draws taken out: crop, shrink the whole square by area, round, crop again."""
    image = noise(70, 50)

    class Draws(np.random.Generator):
        def __init__(self) -> None:
            super().__init__(np.random.PCG64(0))
            self.values = iter([9, 0, 36, 3, 4])  # left, top, side, then left and top of the second crop
            self.ranges: list[tuple[int, int]] = []

        def integers(self, low: int, high: int | None = None) -> int:  # type: ignore[override]
            self.ranges.append((0, low) if high is None else (low, high))
            return next(self.values)

    draws = Draws()
    transform = ImageTransform(TransformConfig(image_size=32, crop="dalle_tokenizer"))
    shown = levels(transform(image, draws))
    assert draws.ranges == [(0, 21), (0, 1), (36, 49), (0, 5), (0, 5)]
    square = np.asarray(image)[0:50, 9:59]
    shrunk = shrink_by_area(square, 36, 0, 0, 36).transpose(1, 2, 0)
    assert np.abs(shown.astype(int) - shrunk[4:36, 3:35]).max() <= 1


def test_a_dalle_crop_is_at_every_place_the_last_row_and_column_too() -> None:
    image = noise(38, 36)  # a square of 36, anywhere in it; as the least side is 36 too, nothing is shrunk
    transform = ImageTransform(TransformConfig(image_size=32, crop="dalle_tokenizer"))
    lookup = {np.asarray(image)[y : y + 32, x : x + 32].tobytes(): (x, y) for x in range(7) for y in range(5)}
    shown = [levels(transform(image, np.random.default_rng(number))).tobytes() for number in range(600)]
    assert {lookup[pixels] for pixels in shown} == set(lookup.values())


@pytest.mark.parametrize("crop", ["dalle_tokenizer", "dalle_transformer"])
def test_a_shrunken_dalle_crop_is_at_every_place(crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[int, set[tuple[int, int]]] = defaultdict(set)

    def noting(pixels: np.ndarray, side: int, top: int, left: int, size: int) -> np.ndarray:
        taken[side].add((left, top))
        return shrink_by_area(pixels, side, top, left, size)

    monkeypatch.setattr(transforms, "shrink_by_area", noting)
    transform = ImageTransform(TransformConfig.model_validate({"image_size": 16, "crop": crop}))
    image = noise(50, 40)
    for number in range(3000):
        transform(image, np.random.default_rng(number))
    least, most = (18, 24) if crop == "dalle_tokenizer" else (16, 18)
    assert set(taken) == set(range(least, most + 1))
    for side, places in taken.items():
        room = range(side - 16 + 1)
        assert {left for left, _ in places} == {top for _, top in places} == set(room)


@pytest.mark.parametrize("crop", ["dalle_tokenizer", "dalle_transformer"])
def test_dalle_crops_of_small_images(crop: str) -> None:
    transform = ImageTransform(TransformConfig.model_validate({"image_size": 32, "crop": crop}))
    # As large as the model's image: the listings leave it as it is.
    image = noise(32, 32)
    assert np.array_equal(levels(transform(image, np.random.default_rng(0))), np.asarray(image))
    # A little larger: never enlarged, so the tokenizer's is cropped without being shrunk.
    image = noise(34, 34)
    if crop == "dalle_tokenizer":
        shown = levels(transform(image, np.random.default_rng(0)))
        parts = [np.asarray(image)[y : y + 32, x : x + 32] for y in range(3) for x in range(3)]
        assert any(np.array_equal(shown, part) for part in parts)
    # Smaller, where the paper's code fails: the whole square, enlarged to the size.
    small = noise(20, 20)
    whole = ImageTransform(TransformConfig(image_size=32))(small, None)
    assert torch.equal(transform(small, np.random.default_rng(0)), whole)


# --- large JPEGs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crop", "side"),
    [
        ("center", 512),
        ("stretch", 512),
        ("pad", 512),
        ("random", 640),
        ("dalle_tokenizer", 768),
        ("dalle_transformer", 576),
    ],
)
def test_the_ample_side_is_twice_what_the_crop_needs(crop: str, side: int) -> None:
    assert TransformConfig.model_validate({"crop": crop, "smallest_crop": 0.8}).min_decode_side == side


def test_flip_mirrors_half_of_the_training_images() -> None:
    image = noise(16, 16)
    transform = ImageTransform(TransformConfig(image_size=16, flip=True))
    plain = transform(image, None)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(200):
        seen = transform(image, rng)
        assert torch.equal(seen, plain) or torch.equal(seen, plain.flip(-1))
        flipped += not torch.equal(seen, plain)
    assert 70 < flipped < 130


@pytest.mark.usefixtures("shapes_unchecked")
def test_to_pil_clamps_and_rounds() -> None:
    values = torch.tensor([-3.0, -1.0, 0.5 / 127.5 - 1 + 1e-4, 0.0, 1.0, 9.0], dtype=torch.float64)
    image = to_pil(values.expand(1, 3, 1, 6).bfloat16().double() * 0 + values)[0]
    assert image.size == (6, 1)
    assert [image.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 1, 128, 255, 255]
    with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
        to_pil(torch.zeros(3, 4, 4))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"received L; use vqgan\.data\.images\.decode\.decode_image"):
        ImageTransform(TransformConfig(image_size=8))(Image.new("L", (8, 8)), None)
    for wrong in ({"image_size": 0}, {"smallest_crop": 0.0}, {"background": "reddish"}, {"crop": "zoom"}):
        with pytest.raises(ValidationError):
            TransformConfig.model_validate(wrong)
