"""The ViT-VQGAN of enhancing-transformers, whose weights are public (github.com/thuanz123/enhancing-transformers).

The same plan as `vqgan.models.vit_vqgan`, read differently from the paper (arXiv 2110.04627, section 3.1): tanh stands
in the feed-forward of every block instead of in a head after them; positions are fixed sines and cosines; queries, keys
and values have no bias; heads are 64 wide, so that all of them together may be wider or narrower than the model;
patches are cut and pasted by convolutions. Its networks use images in [0, 1], which are converted here at both ends.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config
from vqgan.layers.attend import attend
from vqgan.layers.positions import positions_on
from vqgan.models.autoencoder import Autoencoder, AutoencoderConfig, Decoded, Decoder, Grid
from vqgan.quantizers import build_quantizer


class EnhancingStackConfig(Config, fixed=("depth", "width", "heads", "head_width", "mlp_width")):
    """Size of one transformer stack. The defaults are the public small model's."""

    depth: int = Field(8, gt=0)
    """Number of blocks."""
    width: int = Field(512, gt=0, multiple_of=4)
    """Model width; a multiple of 4, for sine and cosine in two directions."""
    heads: int = Field(8, gt=0)
    """Attention heads."""
    head_width: int = Field(64, gt=0)
    """Width of a head, whatever the model's."""
    mlp_width: int = Field(2048, gt=0)
    """Hidden width of each block's feed-forward."""


class EnhancingViTVQGANConfig(AutoencoderConfig, fixed=("patch_size",)):
    """ViT-VQGAN as enhancing-transformers builds it: 1024 codes for 256 pixels."""

    kind: Literal["enhancing_vit_vqgan"] = "enhancing_vit_vqgan"
    """Vision transformers on both sides, in the variant of enhancing-transformers."""
    patch_size: int = Field(8, gt=0)
    """Side of a patch in pixels; one latent each."""
    output: Literal["rgb"] = "rgb"
    """Raw RGB."""
    encoder: EnhancingStackConfig = EnhancingStackConfig()
    """The encoder's size."""
    decoder: EnhancingStackConfig = EnhancingStackConfig()
    """The decoder's size."""

    @property
    def stride(self) -> int:
        return self.patch_size


class EnhancingViTVQGAN(Autoencoder):
    """ViT-VQGAN of enhancing-transformers. Other image sizes than that of training use interpolated positions."""

    def __init__(self, config: EnhancingViTVQGANConfig) -> None:
        quantizer = build_quantizer(config.quantizer)
        super().__init__(
            config,
            encoder=_Encoder(config, quantizer.latent_dim),
            quantizer=quantizer,
            decoder=_Decoder(config, quantizer.code_dim),
        )


class _Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] to (B, N, D): patches, transformer, projection to the look-up space."""

    def __init__(self, config: EnhancingViTVQGANConfig, latent_dim: int) -> None:
        super().__init__()
        patch = config.patch_size
        self.patchify = nn.Conv2d(3, config.encoder.width, patch, patch)
        self.transformer = _Stack(config.encoder, config.image_size // patch)
        self.to_latent = nn.Linear(config.encoder.width, latent_dim)
        self.apply(_init_weights)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        patches = self.patchify((images + 1) / 2)
        grid = (patches.shape[-2], patches.shape[-1])
        return self.to_latent(self.transformer(rearrange(patches, "b d h w -> b (h w) d"), grid))


class _Decoder(Decoder):
    """(B, N, E) to images in [-1, 1]: projection from the look-up space, transformer, patches."""

    def __init__(self, config: EnhancingViTVQGANConfig, code_dim: int) -> None:
        super().__init__()
        patch = config.patch_size
        self.from_code = nn.Linear(code_dim, config.decoder.width)
        self.transformer = _Stack(config.decoder, config.image_size // patch)
        self.unpatchify = nn.ConvTranspose2d(config.decoder.width, 3, patch, patch)
        self.apply(_init_weights)

    def forward(self, latents: Float[Tensor, "B N E"], grid: Grid) -> Decoded:
        x = self.transformer(self.from_code(latents), grid)
        images = self.unpatchify(rearrange(x, "b (h w) d -> b d h w", h=grid[0]))
        return Decoded.of(2 * images.float() - 1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.unpatchify.weight  # type: ignore[return-value]


class _Stack(nn.Module):
    """Fixed positions, `depth` blocks and a final LayerNorm."""

    positions: Tensor

    def __init__(self, config: EnhancingStackConfig, side: int) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("positions", sines_and_cosines(side, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Float[Tensor, "B N D"], grid: Grid) -> Float[Tensor, "B N D"]:
        x = x + positions_on(self.positions, (self.side, self.side), grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), with tanh."""

    def __init__(self, config: EnhancingStackConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width), nn.Tanh(), nn.Linear(config.mlp_width, config.width)
        )

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = x + self.out(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))
        return x + self.mlp(self.mlp_norm(x))


def sines_and_cosines(side: int, width: int) -> Float[Tensor, "N D"]:
    """Returns positions of a side x side grid: sine and cosine of the column, then of the row (MAE, arXiv 2111.06377).

    Each of the four quarters has frequencies 10000^(-i / (width / 4)).
    """
    places = torch.arange(side, dtype=torch.float64)
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(places, frequencies)
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, D / 2)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat((columns, rows), dim=1).float()


def _init_weights(module: nn.Module) -> None:
    """Xavier-uniform matrices; a convolution of patches counts as the matrix that it is."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight.detach().flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
