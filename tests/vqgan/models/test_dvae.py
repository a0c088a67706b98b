"""DALL-E's discrete VAE: OpenAI's size, its start, its bound, any image size, any quantizer."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.config.schema import ConfigError, validate
from vqgan.layers.logit_laplace import shrink_pixels
from vqgan.losses.reconstruction import logit_laplace
from vqgan.models.dvae import DVAE, DVAEConfig
from vqgan.quantizers import AnnealingConfig, GumbelConfig, NearestConfig

pytestmark = pytest.mark.threads

CODES, HIDDEN, DECODER_WIDTH = 24, 8, 12
GUMBEL = GumbelConfig(codebook_size=CODES, latent_dim=8 * HIDDEN, code_dim=DECODER_WIDTH)
NEAREST = NearestConfig(codebook_size=CODES, code_dim=6)
QUANTIZERS = pytest.mark.parametrize("quantizer", [GUMBEL, NEAREST], ids=lambda config: config.kind)


def tiny(**changes: Any) -> DVAE:
    torch.manual_seed(0)
    values = {"image_size": 16, "hidden": HIDDEN, "decoder_width": DECODER_WIDTH, "quantizer": GUMBEL}
    return DVAE(DVAEConfig(**values | changes))


def images(batch: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@QUANTIZERS
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_shapes_and_dtypes(quantizer: GumbelConfig | NearestConfig, precision: torch.dtype) -> None:
    model = tiny(quantizer=quantizer)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        output = model(images())
    assert model.grid == (2, 2)
    assert output.latents.shape == (2, 4, model.quantizer.latent_dim)
    assert output.latents.dtype is precision
    assert output.quantized.codes.shape == (2, 4)
    assert output.quantized.latents.shape == (2, 4, model.quantizer.code_dim)
    assert output.quantized.latents.dtype is torch.float32
    for image in output.decoded:
        assert image.shape == (2, 3, 16, 16)
        assert image.dtype is torch.float32


@QUANTIZERS
@pytest.mark.parametrize("output", ["rgb", "logit_laplace"])
def test_every_parameter_learns(quantizer: GumbelConfig | NearestConfig, output: str) -> None:
    model = tiny(quantizer=quantizer, output=output)
    result = model(images())
    terms = [result.decoded.images.square().mean(), result.quantized.loss]
    if output == "logit_laplace":
        terms.append(logit_laplace(result.decoded.mean, result.decoded.log_scale, images()))
    else:
        assert result.decoded.mean is result.decoded.log_scale is None
    torch.stack(terms).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@QUANTIZERS
@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40)])
def test_other_sizes(quantizer: GumbelConfig | NearestConfig, height: int, width: int) -> None:
    model = tiny(quantizer=quantizer).eval()
    image = images(1, height, width)
    output = model(image)
    assert output.decoded.images.shape == image.shape
    codes = model.quantizer.encode(model.encode(image))
    assert torch.equal(codes, output.quantized.codes)
    decoded = model.decode(model.quantizer.embed(codes), (height // 8, width // 8))
    assert torch.equal(decoded.images, output.decoded.images)


def test_without_quantization_the_decoder_reads_the_continuous_latents() -> None:
    model = tiny()
    output = model(images(), quantize=False)
    assert output.quantized is None
    unquantized = model.quantizer.unquantized(output.latents)
    assert torch.equal(output.decoded.images, model.decode(unquantized).images)


def parameters_of_a_block(width_in: int, width_out: int, kernels: tuple[int, ...]) -> int:
    """Four convolutions, a quarter as wide inside, and a 1x1 convolution beside them where the width changes."""
    inner = width_out // 4
    widths = [width_in, inner, inner, inner, width_out]
    branch = sum(widths[i] * widths[i + 1] * kernel**2 + widths[i + 1] for i, kernel in enumerate(kernels))
    return branch + (width_in * width_out + width_out if width_in != width_out else 0)


def parameters_of_groups(widths: list[int], kernels: tuple[int, ...]) -> int:
    pairs = [(widths[i], widths[i + 1]) for i in range(4)]
    return sum(parameters_of_a_block(a, b, kernels) + parameters_of_a_block(b, b, kernels) for a, b in pairs)


def test_the_published_model_has_its_size() -> None:
    with torch.device("meta"):
        model = DVAE(DVAEConfig())

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    # OpenAI's two files: the quantizer's projection belongs to the encoder, its codebook to the decoder.
    encoder = count(model.encoder) + count(model.quantizer.proj)
    decoder = count(model.decoder) + model.quantizer.codebook.numel()
    assert encoder + decoder == count(model)
    widths = [256, 512, 1024, 2048]
    ends = (3 * 7**2 * 256 + 256) + (2048 * 8192 + 8192)
    assert encoder == ends + parameters_of_groups([256, *widths], (3, 3, 3, 1)) == 53_786_240
    ends = (8192 * 128 + 128) + (256 * 6 + 6)
    assert decoder == ends + parameters_of_groups([128, *reversed(widths)], (1, 3, 3, 3)) == 43_829_766
    assert model.grid == (32, 32)


def test_it_starts_as_openai_has_it() -> None:
    model = tiny(hidden=32, quantizer=NEAREST)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 1 + 3 + 4 * 8 + 1 + (1 + 4 + 4 * 8 + 1)
    for layer in layers:
        fan_in = layer.weight[0].numel()
        # Of n normal draws the standard deviation is known to 1 / sqrt(2 n); four times that never fails by chance.
        tolerance = 4 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() * math.sqrt(fan_in) == pytest.approx(1, abs=tolerance)
        assert layer.bias is None or not layer.bias.any()
    assert {block.gain for side in (model.encoder, model.decoder) for group in side.groups for block in group} == {
        1 / 64
    }
    assert not model.decoder.input_bias.any()


def test_the_loss_is_the_papers_bound() -> None:
    """[-sum ln f + beta sum KL] / (3 H W) (papers.md C.1): means, with codebook_weight 1 / 192 = 1 / (3 * 8 * 8)."""
    height, width = 16, 24
    model = tiny().eval()
    model.quantizer.at_step(5_000, 1_000_000)  # where beta has grown to the paper's 6.6
    with torch.no_grad():  # logits that say something
        model.quantizer.proj.weight.mul_(4)
    image = images(1, height, width)
    output = model(image)

    x = shrink_pixels(image).double()
    mean, scale = output.decoded.mean.double(), output.decoded.log_scale.double().exp()
    density = torch.exp(-(torch.logit(x) - mean).abs() / scale) / (2 * scale * x * (1 - x))
    posterior = model.quantizer.proj(output.latents).double().softmax(-1)  # (1, N, V)
    divergence = (posterior * torch.log(posterior * CODES)).sum()
    assert divergence > 0.1
    bound = (-density.log().sum() + 6.6 * divergence) / (3 * height * width)

    likelihood = logit_laplace(output.decoded.mean, output.decoded.log_scale, image)
    torch.testing.assert_close((likelihood + output.quantized.loss / 192).double(), bound, rtol=1e-6, atol=0)


def test_state_dict_keys_stay() -> None:
    def groups(shortcuts: set[str]) -> set[str]:
        blocks = [f"groups.{group}.{block}" for group in range(4) for block in range(2)]
        names = {f"{block}.branch.{conv}" for block in blocks for conv in range(4)}
        return names | {f"groups.{group}.0.shortcut" for group in shortcuts}

    layers = {f"encoder.{name}" for name in groups({"1", "2", "3"}) | {"input"}}
    layers |= {f"decoder.{name}" for name in groups({"0", "1", "2", "3"}) | {"output"}}
    own = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {"decoder.input_bias"}
    gumbel, nearest = set(tiny().state_dict()), set(tiny(quantizer=NEAREST).state_dict())
    assert gumbel == own | {"quantizer.proj.weight", "quantizer.proj.bias", "quantizer.codebook"}
    fitting = {"encoder.to_latent.weight", "encoder.to_latent.bias", "decoder.from_code.weight"}
    assert nearest == own | fitting | {"quantizer.codebook"}


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size 60 is not a multiple of the 8 pixels"):
        validate(DVAEConfig, {"image_size": 60}, "test")
    with pytest.raises(ConfigError, match="hidden: input should be a multiple of 4, received 30"):
        validate(DVAEConfig, {"hidden": 30}, "test")
    with pytest.raises(ValueError, match="multiples of 8 pixels, received 20x16"):
        tiny().encode(images(1, 20, 16))


def test_it_overfits_one_image() -> None:
    """Trained with soft codes, judged with hard ones."""
    steps, full_rate = 200, 5e-3
    temperature = AnnealingConfig(start=1.0, end=1 / 16, over="30%")
    kl_weight = AnnealingConfig(start=0.0, end=6.6, over="50%")
    model = tiny(
        blocks_per_group=1, quantizer=GUMBEL.model_copy(update={"temperature": temperature, "kl_weight": kl_weight})
    )
    colors = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    image = F.interpolate(colors, scale_factor=8, mode="nearest")
    optimizer = torch.optim.Adam(model.parameters(), lr=full_rate)
    for step in range(steps):
        model.quantizer.at_step(step, steps)
        optimizer.param_groups[0]["lr"] = full_rate * (1 - step / steps)
        output = model(image)
        loss = logit_laplace(output.decoded.mean, output.decoded.log_scale, image) + output.quantized.loss / 192
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        error = (model(image).decoded.images - image).abs().mean() / 2
    flat = (image - image.mean((2, 3), keepdim=True)).abs().mean() / 2
    assert flat > 0.15
    assert error < 0.06
