"""Completion: which codes stay, by brute force; what is given; and that it is in the images unchanged."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from parti.completion import Completion, keep_top, known_where_black
from parti.sampling.generate import SamplingConfig
from tests.tiny import CAPTIONS, tiny_image_tokenizer, tiny_text_to_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig, to_pil
from vqgan.data.source import UnusableSample

pytestmark = pytest.mark.slow_threads

CPU = torch.device("cpu")
HALF = keep_top((4, 4), 0.5)
EVERYTHING = SamplingConfig(guidance_scale=1.7, guidance_schedule="cosine", top_k=20, top_p=0.9)


def image(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (3, 7), (2, 1)])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.25, 0.4, 0.5, 0.66, 0.9, 0.999])
def test_keep_top_keeps_the_whole_rows_that_come_closest_to_the_share(grid: tuple[int, int], share: float) -> None:
    keep = keep_top(grid, share)
    assert keep.shape == grid
    rows = int(keep.all(1).sum())
    assert torch.equal(keep, (torch.arange(grid[0]) < rows)[:, None].expand(grid))
    closest = min(abs(count / grid[0] - share) for count in range(1, grid[0]))
    assert abs(rows / grid[0] - share) == pytest.approx(closest)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="the share that stays lies between 0 and 1, received"):
        keep_top((4, 4), share)


def slow_keep_black(light: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Every code against every pixel of the largest centered square: which share a place?"""
    height, width = light.shape
    side = min(height, width)
    keep = torch.ones(grid, dtype=torch.bool)
    top, left = (height - side) // 2, (width - side) // 2
    for row, column, y, x in itertools.product(range(grid[0]), range(grid[1]), range(side), range(side)):
        meets = [
            Fraction(cell, cells) < Fraction(pixel + 1, side) and Fraction(pixel, side) < Fraction(cell + 1, cells)
            for cell, cells, pixel in ((row, grid[0], y), (column, grid[1], x))
        ]
        if all(meets) and light[top + y, left + x]:
            keep[row, column] = False
    return keep


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 5)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (6, 6), (9, 9), (5, 8), (11, 7)])
def test_keep_black_is_by_pixels_of_masks_of_any_size(grid: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.05, 0.3):
        light = rng.random(size) < density
        levels = np.where(light, rng.integers(128, 256, size), rng.integers(0, 128, size)).astype(np.uint8)
        assert torch.equal(known_where_black(Image.fromarray(levels), grid), slow_keep_black(light, grid))


def test_masks_of_all_kinds_mean_the_same() -> None:
    levels = np.zeros((8, 8), dtype=np.uint8)
    levels[2:6, 4:] = 255
    gray = Image.fromarray(levels)
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[1:3, 2:] = False
    transparent = Image.fromarray(np.dstack([np.zeros((8, 8, 3), np.uint8), 255 - levels]))  # light by what lies behind
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    for mask in (gray, gray.convert("1"), gray.convert("RGB"), gray.convert("P"), transparent, deep):
        assert torch.equal(known_where_black(mask, (4, 4)), expected), mask.mode


def test_the_codes_of_the_centered_square_are_given_to_every_row() -> None:
    tokenizer, wide = tiny_image_tokenizer(), image(40, 16)
    given = Completion(wide, HALF).given(tokenizer, 3, CPU)
    pixels = ImageTransform(TransformConfig(image_size=16))(wide.crop((12, 0, 28, 16)), None)
    assert torch.equal(given.codes, tokenizer.encode(pixels[None]).expand(3, -1))
    assert torch.equal(given.kept, HALF.flatten().expand(3, -1))
    assert Completion(wide, HALF).share == 0.5


def test_images_of_any_mode_serve() -> None:
    tokenizer, base = tiny_image_tokenizer(), image()
    gray = base.convert("L")
    deep = Image.fromarray(np.array(gray).astype(np.uint16) * 257)
    expected = Completion(gray.convert("RGB"), HALF).given(tokenizer, 1, CPU).codes
    for same in (gray, deep, gray.convert("LA")):
        assert torch.equal(Completion(same, HALF).given(tokenizer, 1, CPU).codes, expected), same.mode
    with pytest.raises(UnusableSample, match="the given image: its gray values include infinity or NaN"):
        Completion(Image.fromarray(np.full((16, 16), np.nan, np.float32)), HALF).given(tokenizer, 1, CPU)


def test_what_is_shown_is_the_reconstruction_and_gray_where_it_is_generated() -> None:
    tokenizer = tiny_image_tokenizer()
    keep = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    completion = Completion(image(), keep)
    shown = np.array(completion.shown(tokenizer, CPU))
    (reconstruction,) = to_pil(tokenizer.decode(completion.given(tokenizer, 1, CPU).codes))
    for row in range(4):
        for column in range(4):
            place = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            expected = np.array(reconstruction)[place] if keep[row, column] else 128
            assert (shown[place] == expected).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("settings", [SamplingConfig(), EVERYTHING])
def test_kept_codes_are_in_the_images_unchanged(settings: SamplingConfig, share: float) -> None:
    model = tiny_text_to_image()
    keep = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < share
    completion = Completion(image(), keep)
    steps: list[Tensor] = []
    pairs = [(CAPTIONS[0], 0), (CAPTIONS[1], 1), (CAPTIONS[0], 2)]
    images = model.generate(pairs, settings, completion=completion, on_codes=steps.append)
    codes, given = steps[-1], completion.given(model.image_tokenizer, 3, CPU)
    assert torch.equal(codes[given.kept], given.codes[given.kept])
    assert torch.equal(images, model.image_tokenizer.decode(codes))
    assert not (codes == given.codes).all(1).any()  # and the rest is drawn


def test_a_call_completes_each_prompt_and_sample() -> None:
    model, keep = tiny_text_to_image(), HALF
    generated = model(CAPTIONS[:2], num_images=2, image=image(), keep=keep, seed=3).generated
    assert [(one.prompt, one.seed) for one in generated] == [
        (caption, seed) for caption in CAPTIONS[:2] for seed in (3, 4)
    ]
    pairs = [(one.prompt, one.seed) for one in generated]
    expected = to_pil(model.generate(pairs, model.sampling, completion=Completion(image(), keep)))
    one_by_one = model(CAPTIONS[:2], num_images=2, image=image(), keep=keep, seed=3, batch_size=1).images
    for first, second, third in zip(expected, [one.image for one in generated], one_by_one, strict=True):
        assert np.array_equal(first, second)
        assert np.array_equal(first, third)
    other = model(CAPTIONS[:2], num_images=2, image=image(seed=1), keep=keep, seed=3).images
    assert not any(map(np.array_equal, other, one_by_one))


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_text_to_image()
    for incomplete in ({"image": image()}, {"keep": HALF}):
        with pytest.raises(ValueError, match="image and keep go together"):
            model("a cat", **incomplete)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"each code of the grid \(4, 4\) stays, received \(3, 4\); .* make one"):
        model("a cat", image=image(), keep=HALF[:3])
    with pytest.raises(ValueError, match="everything stays, there is nothing to draw; keep some codes"):
        model("a cat", image=image(), keep=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing stays of the image; keep some codes and draw others"):
        model("a cat", image=image(), keep=torch.zeros(4, 4, dtype=torch.bool))
