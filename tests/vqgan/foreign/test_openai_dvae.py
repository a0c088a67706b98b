"""OpenAI's discrete VAE: the encoder against transformers' own, the decoder against its formula step by step."""

import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from vqgan.foreign.openai_dvae import from_openai_dvae
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.layers.logit_laplace import shrink_pixels
from vqgan.models.autoencoder import Autoencoder

pytestmark = pytest.mark.slow_threads

HIDDEN, BLOCKS, CODES, DECODER_WIDTH = 8, 2, 40, 12
Tensors = dict[str, Tensor]


def convolution(generator: torch.Generator, width_in: int, width_out: int, kernel: int, name: str) -> Tensors:
    scale = (2 / (width_in * kernel**2)) ** 0.5  # more than the paper's: what a relu drops does not fade away
    weight = torch.randn(width_out, width_in, kernel, kernel, generator=generator) * scale
    return {f"{name}.w": weight, f"{name}.b": torch.randn(width_out, generator=generator) / 10}


def block(generator: torch.Generator, width_in: int, width_out: int, kernels: tuple[int, ...], name: str) -> Tensors:
    inner = width_out // 4
    widths = [width_in, inner, inner, inner, width_out]
    tensors = convolution(generator, width_in, width_out, 1, f"{name}.id_path") if width_in != width_out else {}
    for number, kernel in enumerate(kernels, start=1):
        tensors |= convolution(generator, widths[number - 1], widths[number], kernel, f"{name}.res_path.conv_{number}")
    return tensors


def side(seed: int, first: tuple[int, int, int], widths: list[int], kernels: tuple[int, ...], last: int) -> Tensors:
    """The tensors of encoder.pkl or decoder.pkl at a small size, under their names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = convolution(generator, *first, "blocks.input")
    before = first[1]
    for group, width in enumerate(widths, start=1):
        for number in range(1, BLOCKS + 1):
            tensors |= block(generator, before, width, kernels, f"blocks.group_{group}.block_{number}")
            before = width
    return tensors | convolution(generator, before, last, 1, "blocks.output.conv")


ENCODER = side(0, (3, HIDDEN, 7), [HIDDEN, 2 * HIDDEN, 4 * HIDDEN, 8 * HIDDEN], (3, 3, 3, 1), CODES)
# Gray gives nothing but the later biases, so that images get more than one code.
ENCODER["blocks.input.b"] = -0.5 * ENCODER["blocks.input.w"].sum((1, 2, 3))
DECODER = side(1, (CODES, DECODER_WIDTH, 1), [8 * HIDDEN, 4 * HIDDEN, 2 * HIDDEN, HIDDEN], (1, 3, 3, 3), 6)


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return from_openai_dvae(ENCODER, DECODER)


def images(height: int = 24, width: int = 40) -> Tensor:
    """One color a code, and noise, in [-1, 1]."""
    generator = torch.Generator().manual_seed(2)
    colors = torch.rand(2, 3, height // 8, width // 8, generator=generator) * 1.6 - 0.8
    noise = torch.rand(2, 3, height, width, generator=generator) * 0.4 - 0.2
    return colors.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3) + noise


def oracle_logits(pixels: Tensor) -> Tensor:
    """transformers' copy of the encoder with the same weights; `pixels` are mapped already."""
    oracle = FlavaImageCodebook(
        FlavaImageCodebookConfig(hidden_size=HIDDEN, num_blocks_per_group=BLOCKS, vocab_size=CODES)
    )
    renamed = {}
    for name, tensor in ENCODER.items():
        theirs = re.sub(r"group_(\d)\.", r"group_\1.group.", name).replace("res_path.", "res_path.path.")
        renamed[re.sub(r"w$", "weight", re.sub(r"b$", "bias", theirs))] = tensor
    oracle.load_state_dict(renamed)
    return oracle(pixels)


def test_the_encoder_is_that_of_transformers(model: Autoencoder) -> None:
    expected = oracle_logits(0.8 * (images() + 1) / 2 + 0.1)
    latents = model.encode(images())
    logits = model.quantizer.proj(latents)  # (B, N, V)
    torch.testing.assert_close(logits, expected.flatten(2).mT, rtol=0, atol=1e-5)
    codes = model.quantizer.encode(latents)
    assert torch.equal(codes, expected.argmax(1).flatten(1)), "row-major, on a grid that is not square"
    assert codes.unique().numel() > 2


def reference_decoder(codes: Tensor) -> Tensor:
    """openai/DALL-E's decoder with its gain of 1 / 64: (soft) one-hot maps (B, V, h, w) to (B, 6, H, W)."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = DECODER[f"{name}.w"]
        return F.conv2d(x, weight, DECODER[f"{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv(codes, "blocks.input")
    for group in range(1, 5):
        for number in range(1, BLOCKS + 1):
            name = f"blocks.group_{group}.block_{number}"
            residual = x
            for step in range(1, 5):
                residual = conv(residual.clamp(min=0), f"{name}.res_path.conv_{step}")
            x = conv(x, f"{name}.id_path") if f"{name}.id_path.w" in DECODER else x
            x = x + residual / 64
        if group < 4:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return conv(x.clamp(min=0), "blocks.output.conv")


@pytest.mark.parametrize("soft", [False, True])
def test_the_decoder_is_its_formula(model: Autoencoder, soft: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    if soft:
        weights = (3 * torch.randn(2, 15, CODES, generator=generator)).softmax(-1)
        latents = weights @ model.quantizer.codebook
    else:
        codes = torch.randint(CODES, (2, 15), generator=generator)
        weights = F.one_hot(codes, CODES).float()
        latents = model.quantizer.embed(codes)
    expected = reference_decoder(weights.mT.reshape(2, CODES, 3, 5))
    decoded = model.decode(latents, (3, 5))
    assert decoded.mean is not None
    assert decoded.log_scale is not None
    assert decoded.mean.std() > 0.1
    torch.testing.assert_close(torch.cat((decoded.mean, decoded.log_scale), 1), expected, rtol=0, atol=1e-5)
    unmapped = (torch.sigmoid(expected[:, :3]) - 0.1) / 0.8  # in [0, 1] but for the clamp
    torch.testing.assert_close((decoded.images + 1) / 2, unmapped, rtol=0, atol=1e-5)


def test_sizes_come_from_the_tensors(model: Autoencoder) -> None:
    config = model.config
    assert (config.hidden, config.blocks_per_group, config.decoder_width) == (HIDDEN, BLOCKS, DECODER_WIDTH)
    assert model.quantizer.codebook_size == CODES
    assert model.stride == 8
    assert not model.training
    count = sum(tensor.numel() for tensor in (*ENCODER.values(), *DECODER.values()))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_it_is_an_image_tokenizer(model: Autoencoder) -> None:
    tokenizer = ImageTokenizer(model)
    image_list = images(256, 256)[:1]
    codes = tokenizer.encode(image_list)
    assert codes.shape == (1, 32 * 32)
    logits = oracle_logits(shrink_pixels(image_list))
    assert torch.equal(codes, logits.argmax(1).flatten(1))
    assert tokenizer.decode(codes).shape == image_list.shape


def without(tensors: Mapping[str, Tensor], name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (without(ENCODER, "blocks.input.w"), DECODER, r"encoder\.pkl: blocks\.input\.w.* is missing"),
        (without(ENCODER, "blocks.output.conv.w"), DECODER, r"encoder\.pkl: blocks\.output\.conv\.w.* is missing"),
        (ENCODER, without(DECODER, "blocks.input.w"), r"decoder\.pkl: blocks\.input\.w.* is missing"),
        (DECODER, ENCODER, r"reads 40 channels, not the 3 of an image; are the encoder and the decoder swapped"),
        (
            without(ENCODER, "blocks.group_2.block_1.id_path.b"),
            DECODER,
            r"1 missing \(encoder\.blocks\.group_2\.block_1\.id_path\.b\)",
        ),
        (
            ENCODER,
            DECODER | {"blocks.group_5.block_1.id_path.w": torch.zeros(1)},
            r"1 not known \(decoder\.blocks\.group_5\.block_1\.id_path\.w\)",
        ),
        (ENCODER, DECODER | {"blocks.extra": torch.zeros(1)}, r"1 not known \(decoder\.blocks\.extra\)"),
        (
            ENCODER,
            DECODER | {"blocks.output.conv.w": torch.zeros(6, 3, 1, 1)},
            r"decoder\.blocks\.output\.conv\.w \(6, 3, 1, 1\), must be \(6, 8, 1, 1\)",
        ),
    ],
)
def test_other_tensors_are_refused(encoder: Tensors, decoder: Tensors, message: str) -> None:
    with pytest.raises(ForeignCheckpointError, match=message):
        from_openai_dvae(encoder, decoder)
