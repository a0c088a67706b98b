"""DALL-E's discrete VAE: a residual convolution network on both sides of a categorical code (arXiv 2102.12092,
section 2.1 and appendix A; papers.md C.1).

The encoder's last 1x1 convolution, to a logit for each code, and the weight of the decoder's first, from a (soft)
one-hot, are the Gumbel quantizer's projection and codebook: both are matrices over the codes. What is left of them
here is the bias of the decoder's first convolution. With a quantizer of other widths a linear layer leads into and out
of its space, so any quantizer goes with this pair of networks. Sizes that the paper leaves open are those of
openai/DALL-E (dall_e/encoder.py, dall_e/decoder.py).

Letters: B batch, H W pixels, h w the grid of latents, N = h * w, row-major, D latent width, E code width, F features.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vqgan.layers.logit_laplace import shrink_pixels
from vqgan.models.autoencoder import Autoencoder, AutoencoderConfig, Decoded, Decoder, Grid
from vqgan.quantizers import GumbelConfig, QuantizerConfig, build_quantizer

_WIDTHS = (1, 2, 4, 8)
"""Widths of the encoder's groups, in multiples of `hidden`; the decoder has them backwards."""
_STRIDE = 2 ** (len(_WIDTHS) - 1)
"""Each group but the last halves the image."""
_ENCODER_KERNELS = (3, 3, 3, 1)
_DECODER_KERNELS = (1, 3, 3, 3)


class DVAEConfig(AutoencoderConfig, fixed=("hidden", "blocks_per_group", "decoder_width")):
    """DALL-E's discrete VAE. The defaults are the published model: 1024 codes an image of 256 pixels."""

    kind: Literal["dvae"] = "dvae"
    """Residual convolutions on both sides; 8 pixels to a code in each direction."""
    output: Literal["rgb", "logit_laplace"] = "logit_laplace"
    """What the decoder emits: the paper's mean and log scale of a logit-Laplace density, or raw RGB."""
    quantizer: QuantizerConfig = GumbelConfig(codebook_size=8192, latent_dim=2048, code_dim=128)
    """From latents to codes. Where latent_dim is 8 hidden and code_dim is decoder_width, the paper's network."""
    hidden: int = Field(256, gt=0, multiple_of=4)
    """Width at full resolution, of both sides; the narrowest grid has 8 times as much."""
    blocks_per_group: int = Field(2, gt=0)
    """Residual blocks at each of the four resolutions, of both sides."""
    decoder_width: int = Field(128, gt=0)
    """Width that the decoder's first block reads."""

    @property
    def stride(self) -> int:
        return _STRIDE


class DVAE(Autoencoder):
    """DALL-E's dVAE. Reads images of any size whose sides are multiples of 8."""

    def __init__(self, config: DVAEConfig) -> None:
        quantizer = build_quantizer(config.quantizer)
        super().__init__(
            config,
            encoder=_DVAEEncoder(config, quantizer.latent_dim),
            quantizer=quantizer,
            decoder=_DVAEDecoder(config, quantizer.code_dim),
        )


class _DVAEEncoder(nn.Module):
    """(B, 3, H, W) to (B, N, D): 7x7 convolution, four groups with max-pooling between them, relu."""

    def __init__(self, config: DVAEConfig, latent_dim: int) -> None:
        super().__init__()
        widths = [config.hidden * multiple for multiple in _WIDTHS]
        self.input = _conv(3, widths[0], 7)
        self.groups = _groups([widths[0], *widths], config.blocks_per_group, _ENCODER_KERNELS)
        self.to_latent = nn.Identity() if latent_dim == widths[-1] else _linear(widths[-1], latent_dim)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        # Channels last from here on: 1.6 times as fast on a CPU in bf16, and the latents below are then a view.
        x = self.input(shrink_pixels(images).contiguous(memory_format=torch.channels_last))  # (B, F, H, W)
        for level, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if level else x)
        return self.to_latent(rearrange(F.relu(x), "b d h w -> b (h w) d"))


class _DVAEDecoder(Decoder):
    """(B, N, E) to images: four groups with nearest-neighbor upsampling between them, relu, 1x1 convolution."""

    def __init__(self, config: DVAEConfig, code_dim: int) -> None:
        super().__init__()
        first = config.decoder_width
        widths = [config.hidden * multiple for multiple in reversed(_WIDTHS)]
        self.from_code = nn.Identity() if code_dim == first else _linear(code_dim, first, bias=False)
        self.input_bias = nn.Parameter(torch.zeros(first))
        self.groups = _groups([first, *widths], config.blocks_per_group, _DECODER_KERNELS)
        self.output = _conv(widths[-1], config.output_channels, 1)

    def forward(self, latents: Float[Tensor, "B N E"], grid: Grid) -> Decoded:
        x = self.from_code(latents) + self.input_bias
        x = rearrange(x, "b (h w) f -> b f h w", h=grid[0], w=grid[1])  # a view, channels last
        for level, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2, mode="nearest") if level else x)
        return Decoded.of(self.output(F.relu(x)))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.output.weight  # type: ignore[return-value]


class _Block(nn.Module):
    """shortcut(x) + gain * branch(x): a relu before each of the branch's four convolutions, a quarter as wide inside.

    gain is 1 / layers^2 with `layers` blocks on this side: a small constant that keeps the start stable (section 2.1).
    """

    def __init__(self, width_in: int, width_out: int, kernels: tuple[int, ...], layers: int) -> None:
        super().__init__()
        inner = width_out // 4
        widths = pairwise([width_in, inner, inner, inner, width_out])
        self.gain = 1 / layers**2
        self.shortcut = nn.Identity() if width_in == width_out else _conv(width_in, width_out, 1)
        self.branch = nn.ModuleList(_conv(*pair, kernel) for pair, kernel in zip(widths, kernels, strict=True))

    def forward(self, x: Float[Tensor, "B F h w"]) -> Float[Tensor, "B G h w"]:
        branch = x
        for conv in self.branch:
            branch = conv(F.relu(branch))
        return torch.add(self.shortcut(x), branch, alpha=self.gain)


def _groups(widths: list[int], blocks: int, kernels: tuple[int, ...]) -> nn.ModuleList:
    """One group for each step in `widths`; its first block changes the width."""
    layers = blocks * (len(widths) - 1)
    return nn.ModuleList(
        nn.Sequential(*(_Block(before if index == 0 else after, after, kernels, layers) for index in range(blocks)))
        for before, after in pairwise(widths)
    )


def _conv(width_in: int, width_out: int, kernel: int) -> nn.Conv2d:
    """Builds a size-preserving convolution with openai/DALL-E's initialization: variance 1 / fan-in, zero bias."""
    conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=(width_in * kernel**2) ** -0.5)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _linear(width_in: int, width_out: int, bias: bool = True) -> nn.Linear:
    """Builds a linear layer with the same initialization."""
    linear = nn.Linear(width_in, width_out, bias=bias)
    nn.init.normal_(linear.weight, std=width_in**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
