"""The ViT-VQGAN of enhancing-transformers: positions by formula, sizes, other images, and that all of it learns."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vqgan.layers.positions import positions_on
from vqgan.models import AUTOENCODERS
from vqgan.models.enhancing_vit import (
    EnhancingStackConfig,
    EnhancingViTVQGAN,
    EnhancingViTVQGANConfig,
    sines_and_cosines,
)
from vqgan.quantizers import NearestConfig

pytestmark = pytest.mark.threads

TINY = EnhancingViTVQGANConfig(
    image_size=16,
    patch_size=4,
    encoder=EnhancingStackConfig(depth=1, width=16, heads=2, head_width=12, mlp_width=24),
    decoder=EnhancingStackConfig(depth=2, width=24, heads=1, head_width=8, mlp_width=20),
    quantizer=NearestConfig(codebook_size=32, code_dim=6),
)


def tiny() -> EnhancingViTVQGAN:
    torch.manual_seed(0)
    return EnhancingViTVQGAN(TINY)


def images(height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_shapes() -> None:
    model = tiny()
    output = model(images())
    assert model.grid == (4, 4)
    assert output.latents.shape == (2, 16, 6)
    assert output.decoded.images.shape == (2, 3, 16, 16)
    assert output.decoded.images.dtype is torch.float32


def test_positions_are_sine_and_cosine_of_column_then_row() -> None:
    side, width = 5, 16
    positions = sines_and_cosines(side, width)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                omega = 10000 ** (-i / quarter)
                place = positions[row * side + column]
                expected = [wave(at * omega) for at in (column, row) for wave in (math.sin, math.cos)]
                assert place[i::quarter].tolist() == pytest.approx(expected, abs=1e-6)


def test_every_parameter_learns_and_the_positions_do_not() -> None:
    model = tiny()
    output = model(images())
    (output.decoded.images.square().mean() + output.quantized.loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert not any("positions" in name for name, _ in model.named_parameters())
    assert model.decoder.last_layer.grad is not None


def test_parameters_of_the_public_small_model() -> None:
    model = EnhancingViTVQGAN(EnhancingViTVQGANConfig())
    d, mlp, patch, code = 512, 2048, 8 * 8 * 3, 32
    stack = 8 * (3 * d * d + d * d + d + 2 * d * mlp + mlp + d + 4 * d) + 2 * d
    encoder, decoder = patch * d + d + stack + d * code + code, code * d + d + stack + d * patch + 3
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder + 8192 * code
    assert model.grid == (32, 32)


def test_other_image_sizes_read_interpolated_positions() -> None:
    model = tiny()
    output = model(images(24, 8))
    assert output.decoded.images.shape == (2, 3, 24, 8)
    with torch.no_grad():  # constant positions stay what they are on any grid
        for stack in (model.encoder.transformer, model.decoder.transformer):
            stack.positions.fill_(0.5)
            elsewhere = positions_on(stack.positions, (stack.side, stack.side), (6, 2))
            torch.testing.assert_close(elsewhere, torch.full((12, stack.positions.shape[1]), 0.5))


def test_a_patch_depends_on_the_patch_behind_the_same_token() -> None:
    """Without attention and MLP output, token (h, w) holds patch (h, w), and paints it where it was."""
    model = tiny()
    with torch.no_grad():
        for stack in (model.encoder.transformer, model.decoder.transformer):
            for block in stack.blocks:
                for layer in (block.out, block.mlp[2]):
                    layer.weight.zero_()
                    layer.bias.zero_()
        plain, changed = images(), images()
        changed[:, :, 4:8, 8:12] = 0.25
        differs = (model(plain, quantize=False).decoded.images != model(changed, quantize=False).decoded.images).any(1)
    assert differs[:, 4:8, 8:12].all()
    differs[:, 4:8, 8:12] = False
    assert not differs.any()


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="multiple of 4"):
        EnhancingStackConfig(width=30)
    with pytest.raises(ValidationError, match="image_size 60 is not a multiple of the 8 pixels"):
        EnhancingViTVQGANConfig(image_size=60)


def test_it_is_in_the_table() -> None:
    assert AUTOENCODERS[TINY.kind] is EnhancingViTVQGAN
