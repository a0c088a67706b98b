"""CNN VQGAN: the published sizes, frozen names, images of other sizes, and errors that help.

That it computes what taming-transformers does stands in tests/vqgan/foreign/test_taming.py.
"""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vqgan.config.schema import ConfigError, validate
from vqgan.models.cnn_vqgan import CNNVQGAN, CNNVQGANConfig
from vqgan.quantizers import NearestConfig

pytestmark = pytest.mark.threads

TINY = CNNVQGANConfig(
    image_size=16,
    base_channels=8,
    channel_multipliers=(1, 2, 3),
    residual_blocks=2,
    attention_resolutions=(8,),
    latent_channels=10,
    groups=4,
    quantizer=NearestConfig(codebook_size=32, code_dim=6, l2_normalize=False),
)


def tiny(**changes: Any) -> CNNVQGAN:
    torch.manual_seed(0)
    return CNNVQGAN(TINY.model_copy(update=changes))


def images(height: int = 16, width: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_f16_has_its_size() -> None:
    with torch.device("meta"):
        model = CNNVQGAN(CNNVQGANConfig())
    to_latent, from_code = parameters(model.encoder.to_latent), parameters(model.decoder.from_code)
    assert to_latent == from_code == 256 * 256 + 256
    assert f"{(parameters(model.encoder) - to_latent) / 1e6:.2f}" == "29.30", "papers.md 0"
    assert f"{(parameters(model.decoder) - from_code) / 1e6:.2f}" == "42.45", "papers.md 0"
    assert parameters(model.quantizer) == 1024 * 256
    assert f"{parameters(model) / 1e6:.2f}" == "72.14", "papers.md 0"
    assert len(model.state_dict()) == 343
    assert (model.stride, model.grid) == (16, (16, 16))
    assert model.config.attention_levels == (False, False, False, False, True)


def test_f8_has_its_size() -> None:
    config = CNNVQGANConfig(channel_multipliers=(1, 1, 2, 4), attention_resolutions=(32,))
    with torch.device("meta"):
        model = CNNVQGAN(config)
    assert f"{parameters(model) / 1e6:.1f}" == "65.1", "papers.md B"
    assert (model.stride, model.grid) == (8, (32, 32))


def test_state_dict_keys_stay() -> None:
    def both(*layers: str) -> list[str]:
        return [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]

    def residual(prefix: str, shortcut: bool = False) -> list[str]:
        layers = ["norm1", "conv1", "norm2", "conv2", *(["shortcut"] if shortcut else [])]
        return both(*(f"{prefix}.{layer}" for layer in layers))

    def attention(prefix: str) -> list[str]:
        return both(*(f"{prefix}.{layer}" for layer in ("norm", "query", "key", "value", "out")))

    def middle_and_ends(side: str) -> list[str]:
        middle = [*residual(f"{side}.middle.0"), *attention(f"{side}.middle.1"), *residual(f"{side}.middle.2")]
        return [*middle, *both(f"{side}.conv_in", f"{side}.head.0", f"{side}.head.2")]

    encoder_levels = [
        *residual("encoder.levels.0.blocks.0"),
        *residual("encoder.levels.0.blocks.1"),
        *both("encoder.levels.0.resample.1"),
        *residual("encoder.levels.1.blocks.0", shortcut=True),
        *residual("encoder.levels.1.blocks.1"),
        *attention("encoder.levels.1.attentions.0"),
        *attention("encoder.levels.1.attentions.1"),
        *both("encoder.levels.1.resample.1"),
        *residual("encoder.levels.2.blocks.0", shortcut=True),
        *residual("encoder.levels.2.blocks.1"),
    ]
    decoder_levels = [
        *(name for block in range(3) for name in residual(f"decoder.levels.0.blocks.{block}")),
        *both("decoder.levels.0.resample.1"),
        *(name for block in range(3) for name in residual(f"decoder.levels.1.blocks.{block}", shortcut=block == 0)),
        *(name for block in range(3) for name in attention(f"decoder.levels.1.attentions.{block}")),
        *both("decoder.levels.1.resample.1"),
        *(name for block in range(3) for name in residual(f"decoder.levels.2.blocks.{block}", shortcut=block == 0)),
    ]
    assert sorted(tiny().state_dict()) == sorted(
        [
            *(*encoder_levels, *middle_and_ends("encoder"), *both("encoder.to_latent")),
            *(*decoder_levels, *middle_and_ends("decoder"), *both("decoder.from_code")),
            "quantizer.codebook",
        ]
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_shapes_and_dtypes(precision: torch.dtype) -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        output = model(images())
    assert model.grid == (4, 4)
    assert output.latents.shape == (2, 16, 6)
    assert output.latents.dtype is precision
    assert output.quantized.codes.shape == (2, 16)
    assert output.decoded.images.shape == (2, 3, 16, 16)
    assert output.decoded.images.dtype is torch.float32
    assert output.decoded.mean is output.decoded.log_scale is None


def test_bf16_stays_near_fp32() -> None:
    model = tiny().eval()
    with torch.no_grad():
        exact = model(images(), quantize=False).decoded.images
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images(), quantize=False).decoded.images
    assert (rounded - exact).norm() < 0.08 * exact.norm(), "some thirty layers, each rounding to 2 ** -9"


def test_images_of_other_sizes() -> None:
    model = tiny().eval()
    output = model(images(8, 20))
    assert output.quantized.codes.shape == (2, 2 * 5)
    assert output.decoded.images.shape == (2, 3, 8, 20)


def test_which_levels_attend_is_fixed_at_construction() -> None:
    """The same weights, built for images of twice the size: the same function of images of any size."""
    model = tiny().eval()
    larger = tiny(image_size=32, attention_resolutions=(16,)).eval()
    larger.load_state_dict(model.state_dict())
    assert torch.equal(model(images(24, 8)).decoded.images, larger(images(24, 8)).decoded.images)


def test_sizes_that_are_no_multiple_of_the_stride_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4 pixels, received 18x16; resize or crop to 16x16"):
        tiny().encode(images(18, 16))


def test_every_parameter_learns() -> None:
    model = tiny()
    output = model(images())
    (output.decoded.images.square().mean() + output.quantized.loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias moves all scores of a query alike, and softmax does not see that.
        assert parameter.grad.any() or name.endswith("key.bias"), name


def test_channels_last_computes_the_same() -> None:
    model = tiny().eval()
    expected = model(images())
    model.to(memory_format=torch.channels_last)
    found = model(images().contiguous(memory_format=torch.channels_last))
    assert torch.equal(found.quantized.codes, expected.quantized.codes)
    torch.testing.assert_close(found.decoded.images, expected.decoded.images, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_in_training_only() -> None:
    model = tiny(dropout=0.5)
    assert not torch.equal(model.encode(images()), model.encode(images()))
    model.eval()
    assert torch.equal(model.encode(images()), model.encode(images()))


def test_logit_laplace_output() -> None:
    model = tiny(output="logit_laplace")
    decoded = model(images()).decoded
    assert decoded.mean.shape == decoded.log_scale.shape == decoded.images.shape == (2, 3, 16, 16)


def test_the_last_layer_is_what_the_image_comes_from() -> None:
    model = tiny()
    before = model(images()).decoded.images
    with torch.no_grad():
        model.decoder.last_layer.zero_()
    after = model(images()).decoded.images
    assert not torch.equal(before, after)
    assert torch.equal(after, model.decoder.head[2].bias.view(1, 3, 1, 1).expand_as(after))


def test_it_overfits_one_image() -> None:
    model = tiny(channel_multipliers=(1, 1, 1), residual_blocks=1, quantizer=NearestConfig(codebook_size=8, code_dim=6))
    image = nn.functional.interpolate(images(4, 4, batch=1), size=(16, 16), mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    errors = []
    for _ in range(48):
        output = model(image)
        error = (output.decoded.images - image).square().mean()
        (error + output.quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.1 * float(image.var()), "far better than a plain color"


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="base_channels 20 do not divide into groups 32; choose a multiple, or"):
        CNNVQGANConfig(base_channels=20)
    with pytest.raises(ConfigError, match=r"attention_resolutions \[24\] are no level's: at image_size 256 the 5"):
        validate(CNNVQGANConfig, {"attention_resolutions": [16, 24]}, "test")
    with pytest.raises(ConfigError, match="image_size 250 is not a multiple of the 16 pixels that a code stands for"):
        validate(CNNVQGANConfig, {"image_size": 250}, "test")
