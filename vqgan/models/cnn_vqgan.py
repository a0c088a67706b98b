"""CNN VQGAN: convolutions with a little attention on both sides of a codebook (arXiv 2012.09841; papers.md B).

The network of CompVis/taming-transformers `taming/modules/diffusionmodules/model.py`, which LlamaGen (arXiv
2406.06525) took over with attention at the lowest resolution only, and latent diffusion (arXiv 2112.10752) with a
narrow code. Which levels attend is fixed when the network is built; nothing in it depends on the image's size.

Letters: B batch, H W pixels, h w the grid of latents, N = h * w, row-major, D latent width before quantization,
E after.
"""

from typing import Annotated, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqgan.layers.conv_blocks import Level, conv_head, downsample, middle, upsample
from vqgan.models.autoencoder import Autoencoder, AutoencoderConfig, Decoded, Decoder, Grid
from vqgan.quantizers import NearestConfig, QuantizerConfig, build_quantizer


class CNNVQGANConfig(
    AutoencoderConfig,
    fixed=(
        "base_channels",
        "channel_multipliers",
        "residual_blocks",
        "attention_resolutions",
        "middle_attention",
        "latent_channels",
        "groups",
    ),
    may_change=("dropout",),
):
    """CNN VQGAN. The defaults are the paper's f16 for ImageNet: 256 pixels to 256 codes, of 1024."""

    kind: Literal["cnn_vqgan"] = "cnn_vqgan"
    """Convolutions on both sides."""
    base_channels: int = Field(128, gt=0)
    """Width at the full resolution, before the multipliers."""
    channel_multipliers: tuple[Annotated[int, Field(gt=0)], ...] = Field((1, 1, 2, 2, 4), strict=False, min_length=1)
    """Width of each level in base_channels, from the full resolution down; the stride is 2 ** (levels - 1)."""
    residual_blocks: int = Field(2, gt=0, le=1000)
    """Residual blocks of an encoder level; a decoder level has one more."""
    attention_resolutions: tuple[int, ...] = Field((16,), strict=False)
    """Levels with attention after each block, named by the side of their grid at image_size: [16] at 256 pixels is
    the fifth level, also where the network later reads images of another size."""
    middle_attention: bool = True
    """Attention between the middle's blocks; latent diffusion's vq-f4-noattn has none."""
    latent_channels: int = Field(256, gt=0)
    """Width z between the networks and the 1x1 convolutions to and from the code."""
    groups: int = Field(32, gt=0)
    """Groups of the normalization; all widths are multiples of it, so narrow networks want fewer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the residual blocks."""
    quantizer: QuantizerConfig = NearestConfig(codebook_size=1024, code_dim=256, l2_normalize=False)
    """The quantizer."""

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the full resolution down."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def attention_levels(self) -> tuple[bool, ...]:
        """Whether each level attends, from the full resolution down."""
        levels = range(len(self.channel_multipliers))
        return tuple(self.image_size // 2**level in self.attention_resolutions for level in levels)

    @model_validator(mode="after")
    def _check_levels(self) -> "CNNVQGANConfig":
        sides = [self.image_size // 2**level for level in range(len(self.channel_multipliers))]
        unknown = sorted(set(self.attention_resolutions) - set(sides))
        if unknown:
            raise ValueError(
                f"attention_resolutions {unknown} are no level's: at image_size {self.image_size} the "
                f"{len(sides)} levels have the sides {sides}; choose among them"
            )
        if self.base_channels % self.groups:
            raise ValueError(
                f"base_channels {self.base_channels} do not divide into groups {self.groups}; choose a multiple, "
                "or fewer groups"
            )
        return self


class CNNVQGAN(Autoencoder):
    """CNN VQGAN of the module's docstring."""

    config: CNNVQGANConfig

    def __init__(self, config: CNNVQGANConfig) -> None:
        quantizer = build_quantizer(config.quantizer)
        super().__init__(
            config,
            encoder=_CNNEncoder(config, quantizer.latent_dim),
            quantizer=quantizer,
            decoder=_CNNDecoder(config, quantizer.code_dim),
        )


class _CNNEncoder(nn.Module):
    """(B, 3, H, W) to (B, N, D): levels from the full resolution down, middle, head, 1x1 convolution to the code."""

    def __init__(self, config: CNNVQGANConfig, latent_dim: int) -> None:
        super().__init__()
        groups, dropout, widths = config.groups, config.dropout, config.widths
        lowest = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                Level(
                    widths[max(level - 1, 0)],
                    width,
                    blocks=config.residual_blocks,
                    attention=config.attention_levels[level],
                    resample=nn.Identity() if level == lowest else downsample(width),
                    groups=groups,
                    dropout=dropout,
                )
                for level, width in enumerate(widths)
            )
        )
        self.middle = middle(widths[-1], groups=groups, dropout=dropout, attention=config.middle_attention)
        self.head = conv_head(widths[-1], config.latent_channels, groups=groups)
        self.to_latent = nn.Conv2d(config.latent_channels, latent_dim, 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        latents = self.to_latent(self.head(self.middle(self.levels(self.conv_in(images)))))
        return rearrange(latents, "b d h w -> b (h w) d")


class _CNNDecoder(Decoder):
    """(B, N, E) to images: 1x1 convolution from the code, middle, levels from the lowest resolution up, head."""

    def __init__(self, config: CNNVQGANConfig, code_dim: int) -> None:
        super().__init__()
        groups, dropout, widths = config.groups, config.dropout, config.widths
        lowest = len(widths) - 1
        self.from_code = nn.Conv2d(code_dim, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.middle = middle(widths[-1], groups=groups, dropout=dropout, attention=config.middle_attention)
        self.levels = nn.Sequential(
            *(
                Level(
                    widths[min(level + 1, lowest)],
                    widths[level],
                    blocks=config.residual_blocks + 1,
                    attention=config.attention_levels[level],
                    resample=nn.Identity() if level == 0 else upsample(widths[level]),
                    groups=groups,
                    dropout=dropout,
                )
                for level in range(lowest, -1, -1)
            )
        )
        self.head = conv_head(widths[0], config.output_channels, groups=groups)

    def forward(self, latents: Float[Tensor, "B N E"], grid: Grid) -> Decoded:
        x = rearrange(latents, "b (h w) e -> b e h w", h=grid[0], w=grid[1])
        if x.is_cpu and torch.is_grad_enabled():
            # `x` is channels last, and what follows keeps that: good without gradients (12% faster), but the backward
            # pass of a bf16 group norm takes 6 times as long on a CPU, and a training step 1.5 times.
            x = x.contiguous()
        return Decoded.of(self.head(self.levels(self.middle(self.conv_in(self.from_code(x))))))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.head[-1].weight  # type: ignore[return-value]
