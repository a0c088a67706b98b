"""ViT-VQGAN: shapes, the paper's size, patches that come back where they were, and errors that help."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vqgan.config.schema import ConfigError, validate
from vqgan.layers.positions import positions_on
from vqgan.layers.transformer import Transformer, TransformerConfig
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqgan.quantizers import NearestConfig

pytestmark = pytest.mark.threads

STACK = TransformerConfig(depth=1, width=16, heads=2, mlp_width=24)
TINY = ViTVQGANConfig(
    image_size=16,
    patch_size=4,
    encoder=STACK,
    decoder=STACK.model_copy(update={"width": 24}),
    quantizer=NearestConfig(codebook_size=32, code_dim=6),
)


def tiny(**changes: Any) -> ViTVQGAN:
    torch.manual_seed(0)
    return ViTVQGAN(TINY.model_copy(update=changes))


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_shapes_and_dtypes(precision: torch.dtype) -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        output = model(images())
    assert model.grid == (4, 4)
    assert model.image_size == 16
    assert output.latents.shape == (2, 16, 6)
    assert output.latents.dtype is precision
    assert output.quantized.codes.shape == (2, 16)
    assert output.quantized.latents.dtype is torch.float32
    assert output.decoded.images.shape == (2, 3, 16, 16)
    assert output.decoded.images.dtype is torch.float32
    assert output.decoded.mean is output.decoded.log_scale is None


def test_without_quantization_the_decoder_reads_the_latents() -> None:
    model = tiny()
    output = model(images(), quantize=False)
    assert output.quantized is None
    normalized = torch.nn.functional.normalize(output.latents, dim=-1)
    assert torch.equal(output.decoded.images, model.decode(normalized).images)


def test_every_parameter_learns() -> None:
    model = tiny()
    output = model(images())
    (output.decoded.images.square().mean() + output.quantized.loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias moves all scores of a query alike, and softmax does not see that; all other gradients are there.
        assert parameter.grad.any(), name


def parameters_of_a_side(depth: int, width: int, mlp: int, tokens: int) -> int:
    """A transformer stack, by its formula: 4 d^2 attention, MLP, all with biases, two norms a block, positions."""
    attention = 4 * width**2 + 4 * width
    block = attention + 2 * width * mlp + mlp + width + 2 * 2 * width
    return depth * block + tokens * width + 2 * width


def test_the_papers_small_model_has_its_size() -> None:
    with torch.device("meta"):
        model = ViTVQGAN(ViTVQGANConfig())
    d, mlp, tokens, patch, code = 512, 2048, 32 * 32, 8 * 8 * 3, 32
    side = parameters_of_a_side(8, d, mlp, tokens)
    encoder = (patch * d + d) + side + (d * mlp + mlp + mlp * d + d) + (d * code + code)
    decoder = (code * d + d) + side + (d * mlp + mlp + mlp * patch + patch)
    total = encoder + decoder + 8192 * code
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert side == pytest.approx(25.8e6, rel=0.01)
    assert total == pytest.approx(55.4e6, rel=0.01), "papers.md A.1: about 56M with both tanh heads"
    assert model.grid == (32, 32)


def test_state_dict_keys_stay() -> None:
    block = [
        *("attention_norm.weight", "attention_norm.bias", "attention.qkv.weight", "attention.qkv.bias"),
        *("attention.out.weight", "attention.out.bias", "mlp_norm.weight", "mlp_norm.bias"),
        *("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
    ]
    stack = ["positions", *(f"blocks.0.{name}" for name in block), "norm.weight", "norm.bias"]
    head = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert set(tiny().state_dict()) == {
        *("encoder.patchify.1.weight", "encoder.patchify.1.bias", "encoder.to_latent.weight", "encoder.to_latent.bias"),
        *("decoder.from_code.weight", "decoder.from_code.bias", "quantizer.codebook"),
        *(f"{side}.transformer.{name}" for side in ("encoder", "decoder") for name in stack),
        *(f"{side}.head.{name}" for side in ("encoder", "decoder") for name in head),
    }


def test_patches_are_row_major_and_come_back_where_they_were() -> None:
    model = tiny()
    rearranged = model.encoder.patchify[0](images())
    for unused in ("from_code", "transformer", "head"):
        setattr(model.decoder, unused, torch.nn.Identity())
    model.decoder.transformer = _IgnoresGrid()
    assert torch.equal(model.decoder(rearranged, (4, 4)).images, images())
    image = images(1)[0]
    for token, (row, column) in [(0, (0, 0)), (1, (0, 1)), (4, (1, 0)), (15, (3, 3))]:
        patch = image[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        assert torch.equal(rearranged[0, token], patch.permute(1, 2, 0).flatten())


class _IgnoresGrid(torch.nn.Module):
    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        return x


def test_the_heads_end_in_tanh_and_a_linear_layer() -> None:
    model = tiny()
    for head in (model.encoder.head, model.decoder.head):
        assert [type(layer).__name__ for layer in head] == ["Linear", "Tanh", "Linear"]
    assert model.decoder.last_layer is model.decoder.head[2].weight


def test_logit_laplace_output() -> None:
    model = tiny(output="logit_laplace")
    decoded = model(images()).decoded
    assert decoded.mean.shape == decoded.log_scale.shape == decoded.images.shape == (2, 3, 16, 16)
    zero_to_one = (torch.sigmoid(decoded.mean) - 0.1) / 0.8
    torch.testing.assert_close(decoded.images, 2 * zero_to_one - 1)
    with torch.no_grad():
        model.decoder.head[2].weight.zero_()
        model.decoder.head[2].bias.copy_(torch.arange(96.0))
        decoded = model.decode(torch.zeros(1, 16, 6))
    # The last axis of a patch's outputs is the channel: 3 means, then 3 log scales, pixel by pixel.
    assert decoded.mean[0, :, 0, 0].tolist() == [0, 1, 2]
    assert decoded.log_scale[0, :, 0, 0].tolist() == [3, 4, 5]
    assert decoded.mean[0, :, 0, 1].tolist() == [6, 7, 8]


def test_attention_looks_at_every_position() -> None:
    torch.manual_seed(0)
    stack = Transformer(STACK, (1, 5))
    x = torch.randn(1, 5, 16, requires_grad=True)
    stack(x)[0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(-1) > 0).all()


def test_dropout_is_on_in_training_only() -> None:
    torch.manual_seed(0)
    stack = Transformer(STACK.model_copy(update={"dropout": 0.5}), (1, 5))
    x = torch.randn(1, 5, 16)
    assert not torch.equal(stack(x), stack(x))
    stack.eval()
    assert torch.equal(stack(x), stack(x))


@pytest.mark.parametrize(("height", "width", "grid"), [(16, 24, (4, 6)), (8, 8, (2, 2)), (32, 20, (8, 5))])
def test_other_sizes_read_interpolated_positions(height: int, width: int, grid: tuple[int, int]) -> None:
    model = tiny().eval()
    output = model(torch.rand(2, 3, height, width))
    assert model.grid_of(height, width) == grid
    assert output.latents.shape == (2, grid[0] * grid[1], 6)
    assert output.decoded.images.shape == (2, 3, height, width)


def test_interpolated_positions_keep_their_places() -> None:
    """Positions that grow linearly along a side still do so, from the same start to the same end, on a finer grid."""
    stack = Transformer(STACK, (4, 4))
    with torch.no_grad():
        stack.positions.copy_(torch.arange(16).div(4, rounding_mode="floor")[:, None].expand(16, 16))
    finer = positions_on(stack.positions, (4, 4), (8, 4)).view(8, 4, 16)
    assert torch.equal(finer[:, :1].expand(8, 4, 16), finer), "columns are alike"
    assert (finer[1:, 0, 0] - finer[:-1, 0, 0] > 0.2).all()
    assert torch.equal(positions_on(stack.positions, (4, 4), (4, 4)), stack.positions)


def test_sides_that_are_no_multiple_of_the_patch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sides are multiples of 4 pixels, received 24x21; resize or crop to 24x20"):
        tiny().encode(torch.zeros(1, 3, 24, 21))


def test_frozen_codes_leave_the_decoder_alone_to_learn() -> None:
    model = tiny()
    assert not model.codes_are_frozen
    model.freeze_codes()
    assert model.codes_are_frozen
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith("decoder.")}


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match="width 30 does not divide into 4 heads"):
        TransformerConfig(width=30, heads=4)
    with pytest.raises(
        ConfigError, match="image_size 60 is not a multiple of the 8 pixels that a code stands for; use 56, or another"
    ):
        validate(ViTVQGANConfig, {"image_size": 60}, "test")
    with pytest.raises(
        ConfigError, match="image_size 4 is not a multiple of the 8 pixels that a code stands for; use 8, or"
    ):
        validate(ViTVQGANConfig, {"image_size": 4}, "test")
