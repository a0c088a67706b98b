"""Crops take what they say, resizing low-passes, and pictures survive the way to a tensor and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vqgan.data.transforms import ImageTransform, TransformConfig, to_pil


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


def test_a_picture_of_the_right_size_passes_bit_for_bit_and_comes_back() -> None:
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
    for picture in (shown["pad"], shown["stretch"]):
        assert [tuple(picture[15, x]) for x in (4, 15, 25)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert (shown["stretch"][0] == shown["stretch"][29]).all()


@pytest.mark.parametrize("crop", ["center", "random", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 3), (33, 32)])
def test_any_shape_of_picture_fits(crop: str, size: tuple[int, int]) -> None:
    transform = ImageTransform(TransformConfig.model_validate({"image_size": 16, "crop": crop, "flip": True}))
    for rng in (None, np.random.default_rng(0)):
        tensor = transform(noise(*size), rng)
        assert tensor.shape == (3, 16, 16)
        assert tensor.abs().max() <= 1


def test_shrinking_is_antialiased() -> None:
    board = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    tensor = ImageTransform(TransformConfig(image_size=32))(board, None)
    assert tensor.abs().max() < 0.05, "a fine checkerboard seen from afar is grey"


def test_evaluation_is_deterministic_and_centred() -> None:
    image = noise(75, 32)
    evaluated = ImageTransform(TransformConfig(image_size=32, crop="random", flip=True))(image, None)
    assert torch.equal(evaluated, ImageTransform(TransformConfig(image_size=32))(image, None))


def test_random_crops_differ_reproducibly_and_reach_both_ends() -> None:
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], 30, 0).repeat(3, 2))
    transform = ImageTransform(TransformConfig(image_size=16, crop="random"))
    once, again = ([transform(ramp, rng) for _ in range(100)] for rng in map(np.random.default_rng, (0, 0)))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    left_edges = [float(picture[0, 0, 0]) for picture in once]
    assert min(left_edges) < -0.9
    assert max(float(picture[0, 0, -1]) for picture in once) > 0.9
    assert len(set(left_edges)) > 20


def test_flip_mirrors_half_of_the_training_pictures() -> None:
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
    picture = to_pil(values.expand(1, 3, 1, 6).bfloat16().double() * 0 + values)[0]
    assert picture.size == (6, 1)
    assert [picture.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 1, 128, 255, 255]
    with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
        to_pil(torch.zeros(3, 4, 4))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"received L; use vqgan\.data\.images\.decode_image"):
        ImageTransform(TransformConfig(image_size=8))(Image.new("L", (8, 8)), None)
    for wrong in ({"image_size": 0}, {"smallest_crop": 0.0}, {"background": "reddish"}, {"crop": "zoom"}):
        with pytest.raises(ValidationError):
            TransformConfig.model_validate(wrong)
