"""ViT-VQGAN: a vision transformer on both sides of a small-dimensional codebook (arXiv 2110.04627; papers.md A).

Both stacks are pre-LN with learned positions; a two-layer feed-forward with tanh ends each. The encoder then
projects to the look-up space, the decoder starts from it. Departures from the paper: the sigmoid on the decoder's
mean exists only with the logit-Laplace output; raw RGB output is what Parti uses (arXiv 2206.10789, section 2.1).
"""

from typing import Literal

from einops import rearrange
from einops.layers.torch import Rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vqgan.layers.transformer import Transformer, TransformerConfig
from vqgan.models.autoencoder import Autoencoder, AutoencoderConfig, Decoded, Decoder, Grid
from vqgan.quantizers import build_quantizer


class ViTVQGANConfig(AutoencoderConfig, fixed=("patch_size",)):
    """ViT-VQGAN. The defaults are the paper's small model at 256 pixels: 1024 codes an image."""

    kind: Literal["vit_vqgan"] = "vit_vqgan"
    """Vision transformers on both sides."""
    patch_size: int = Field(8, gt=0)
    """Side of a patch in pixels; one latent each."""
    encoder: TransformerConfig = TransformerConfig()
    """The encoder's size."""
    decoder: TransformerConfig = TransformerConfig()
    """The decoder's size."""

    @property
    def stride(self) -> int:
        return self.patch_size


class ViTVQGAN(Autoencoder):
    """ViT-VQGAN. Other image sizes than that of training use interpolated positions."""

    def __init__(self, config: ViTVQGANConfig) -> None:
        quantizer = build_quantizer(config.quantizer)
        super().__init__(
            config,
            encoder=_ViTEncoder(config, quantizer.latent_dim),
            quantizer=quantizer,
            decoder=_ViTDecoder(config, quantizer.code_dim),
        )


class _ViTEncoder(nn.Module):
    """(B, 3, H, W) to (B, N, D): patches, transformer, tanh head, projection to the look-up space."""

    def __init__(self, config: ViTVQGANConfig, latent_dim: int) -> None:
        super().__init__()
        size, patch, side = config.encoder, config.patch_size, config.image_size // config.patch_size
        self.patch_size = patch
        self.patchify = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch),
            nn.Linear(3 * patch * patch, size.width),
        )
        self.transformer = Transformer(size, (side, side))
        self.head = _tanh_head(size, size.width)
        self.to_latent = nn.Linear(size.width, latent_dim)
        self.apply(_init_weights)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return self.to_latent(self.head(self.transformer(self.patchify(images), grid)))


class _ViTDecoder(Decoder):
    """(B, N, E) to images: projection from the look-up space, transformer, tanh head, patches."""

    def __init__(self, config: ViTVQGANConfig, code_dim: int) -> None:
        super().__init__()
        size, patch, side = config.decoder, config.patch_size, config.image_size // config.patch_size
        self.from_code = nn.Linear(code_dim, size.width)
        self.transformer = Transformer(size, (side, side))
        self.head = _tanh_head(size, config.output_channels * patch * patch)
        self.patch_size = patch
        self.apply(_init_weights)

    def forward(self, latents: Float[Tensor, "B N E"], grid: Grid) -> Decoded:
        patches = self.head(self.transformer(self.from_code(latents), grid))
        return Decoded.of(
            rearrange(
                patches,
                "b (h w) (p q c) -> b c (h p) (w q)",
                h=grid[0],
                w=grid[1],
                p=self.patch_size,
                q=self.patch_size,
            )
        )

    @property
    def last_layer(self) -> nn.Parameter:
        return self.head[-1].weight  # type: ignore[return-value]


def _tanh_head(size: TransformerConfig, out_features: int) -> nn.Sequential:
    """Returns the two-layer feed-forward with tanh that ends each stack (section 3.1)."""
    return nn.Sequential(nn.Linear(size.width, size.mlp_width), nn.Tanh(), nn.Linear(size.mlp_width, out_features))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
