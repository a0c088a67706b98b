"""What masked patches are predicted as."""

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from parti.mim.palette import fit_palette, nearest_colors
from parti.mim.targets import (
    MeanColors,
    TokenizerCodes,
    color_of_classes,
    from_imagenet,
    mean_color_classes,
    normalize_patches,
    patchify,
    restore_patches,
    to_imagenet,
    unpatchify,
)
from tests.tiny import tiny_image_tokenizer
from vqgan.errors import ConfigError


def images(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_patches_are_ordered_as_maes() -> None:
    config = ViTMAEConfig(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(config)
    assert torch.equal(patchify(images(), 4), theirs.patchify(images()))
    assert torch.equal(unpatchify(patchify(images(), 4), (4, 4)), images())
    tall = torch.rand(1, 3, 8, 12)
    assert torch.equal(unpatchify(patchify(tall, 4), (2, 3)), tall)


def test_imagenets_units_and_back() -> None:
    white = torch.ones(1, 3, 1, 1)
    assert to_imagenet(white).flatten().tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
    assert torch.allclose(from_imagenet(to_imagenet(images())), images(), atol=1e-6)


def test_normalized_patches() -> None:
    patches = patchify(images(), 4)
    normalized = normalize_patches(patches)
    assert normalized.mean(-1).abs().max() < 1e-5
    assert normalized.var(-1).allclose(torch.ones(()), atol=1e-3), "unbiased, as in MAE's code"
    assert torch.allclose(restore_patches(normalized, patches), patches, atol=1e-5)
    assert normalize_patches(torch.full((1, 1, 48), 0.3)).abs().max() < 1e-3, "a flat patch becomes 0"


def test_mean_colors_by_hand() -> None:
    black, white, gray = -torch.ones(3), torch.ones(3), torch.zeros(3)
    flat = torch.stack([black, white, gray]).T.reshape(1, 3, 1, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert mean_color_classes(flat, 4).tolist() == [[0, 511, (4 * 8 + 4) * 8 + 4]]
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(1, 3, 4, 4)
    assert mean_color_classes(red, 4).item() == 7 * 64
    assert color_of_classes(torch.tensor([[7 * 64]])).flatten().tolist() == pytest.approx([0.875, -0.875, -0.875])


def test_mean_colors_by_a_loop() -> None:
    pixels = images(side=8)
    found = MeanColors(4)(pixels)
    for row in range(2):
        for place in range(4):
            top, left = place // 2 * 4, place % 2 * 4
            patch = pixels[row, :, top : top + 4, left : left + 4].numpy()
            bins = [int(np.floor((channel.mean() + 1) / 2 * 8)) for channel in patch]
            assert found[row, place] == bins[0] * 64 + bins[1] * 8 + bins[2]
    assert MeanColors(4).draw(found, pixels).shape == pixels.shape
    assert torch.equal(mean_color_classes(MeanColors(4).draw(found, pixels), 4), found)


def test_codes_of_an_image_tokenizer() -> None:
    tokenizer = tiny_image_tokenizer()
    targets = TokenizerCodes(tokenizer, (4, 4), 16)
    assert targets.classes == 32
    assert torch.equal(targets(images()), tokenizer.encode(images()))
    large = images(side=32)
    assert targets(large).shape == (2, 16), "a tokenizer of another stride reads the image at its own size"
    assert targets.draw(targets(large), large).shape == large.shape


@pytest.mark.parametrize(("grid", "size"), [((8, 8), 16), ((4, 4), 32), ((4, 4), 18)])
def test_a_tokenizer_of_another_grid_is_one_clear_error(grid: tuple[int, int], size: int) -> None:
    with pytest.raises(ConfigError, match="target_size"):
        TokenizerCodes(tiny_image_tokenizer(), grid, size)


def test_a_palette_finds_the_colors_that_are_there() -> None:
    colors = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [0.8, -0.7, -0.7], [-0.6, 0.2, 0.9]])
    members = torch.tensor([0] * 500 + [1] * 20 + [2] * 30 + [3] * 5)
    generator = torch.Generator().manual_seed(0)
    pixels = colors[members] + torch.randn(len(members), 3, generator=generator) * 0.02
    palette = fit_palette(pixels, 4)
    assert torch.cdist(colors, palette).min(1).values.max() < 0.05
    predicted = nearest_colors(pixels, palette)
    assert all(len(predicted[members == number].unique()) == 1 for number in range(4))
    assert torch.equal(palette, fit_palette(pixels, 4)), "the same seed, the same palette"


def test_a_palette_is_a_fixed_point_of_lloyds_iteration() -> None:
    pixels = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    palette = fit_palette(pixels, 8, rounds=200)
    members = nearest_colors(pixels, palette)
    means = torch.stack([pixels[members == number].mean(0) for number in range(8)])
    assert torch.allclose(palette, means, atol=1e-5)


def test_a_palette_of_more_colors_than_there_are_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="received 2; ask for fewer"):
        fit_palette(torch.tensor([[0.0, 0, 0], [1, 1, 1]]), 3)
