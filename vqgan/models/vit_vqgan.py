"""ViT-VQGAN: a vision transformer on both sides of a small-dimensional codebook (arXiv 2110.04627; SPEC A).

Both stacks are pre-LN with learned positions; a two-layer feed-forward with tanh ends each. The encoder then
projects to the look-up space, the decoder starts from it. Departures from the paper: the sigmoid on the decoder's
mean exists only with the logit-Laplace output; raw RGB output is what Parti uses (arXiv 2206.10789, section 2.1).
"""

from typing import Literal

from einops.layers.torch import Rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqgan.config import Config
from vqgan.layers.logit_laplace import logit_laplace_mean
from vqgan.layers.transformer import Transformer, TransformerConfig
from vqgan.models.autoencoder import Autoencoder, Decoded
from vqgan.quantizers import NearestConfig, NearestQuantizer


class ViTVQGANConfig(Config):
    """ViT-VQGAN. The defaults are the paper's small model at 256 pixels: 1024 codes a picture."""

    kind: Literal["vit_vqgan"] = "vit_vqgan"
    """Vision transformers on both sides."""
    image_size: int = Field(256, gt=0)
    """Side of the square picture in pixels."""
    patch_size: int = Field(8, gt=0)
    """Side of a patch in pixels; one code each."""
    encoder: TransformerConfig = TransformerConfig()
    """The encoder's size."""
    decoder: TransformerConfig = TransformerConfig()
    """The decoder's size."""
    output: Literal["rgb", "logit_laplace"] = "rgb"
    """What the decoder emits: raw RGB (Parti), or mean and log scale of a logit-Laplace density (ViT-VQGAN)."""
    quantizer: NearestConfig = NearestConfig()
    """The codebook."""

    @model_validator(mode="after")
    def _check_patches(self) -> "ViTVQGANConfig":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"use {max(1, self.image_size // self.patch_size) * self.patch_size} or another patch_size"
            )
        return self


class ViTVQGAN(Autoencoder):
    """See the module's docstring."""

    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        patch, code_dim = config.patch_size, config.quantizer.code_dim
        encoder, decoder = config.encoder, config.decoder
        channels = {"rgb": 3, "logit_laplace": 6}[config.output]

        self.patchify = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch),
            nn.Linear(3 * patch * patch, encoder.width),
        )
        self.encoder = Transformer(encoder, side * side)
        self.encoder_head = _tanh_head(encoder, encoder.width)
        self.to_code = nn.Linear(encoder.width, code_dim)

        self.quantizer = NearestQuantizer(config.quantizer)

        self.from_code = nn.Linear(code_dim, decoder.width)
        self.decoder = Transformer(decoder, side * side)
        self.decoder_head = _tanh_head(decoder, channels * patch * patch)
        self.unpatchify = Rearrange("b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch, q=patch)
        self.apply(_init_weights)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"this tokenizer reads {self.image_size}x{self.image_size} pictures, received "
                f"{images.shape[-2]}x{images.shape[-1]}; resize, or set data.transform.image_size"
            )
        return self.to_code(self.encoder_head(self.encoder(self.patchify(images))))

    def decode(self, latents: Float[Tensor, "B N D"]) -> Decoded:
        output = self.unpatchify(self.decoder_head(self.decoder(self.from_code(latents)))).float()
        if self.config.output == "rgb":
            return Decoded(output)
        mean, log_scale = output.chunk(2, dim=1)
        return Decoded(logit_laplace_mean(mean), mean, log_scale)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder_head[-1].weight  # type: ignore[return-value]


def _tanh_head(size: TransformerConfig, out_features: int) -> nn.Sequential:
    """The two-layer feed-forward with tanh that ends each stack (section 3.1)."""
    return nn.Sequential(nn.Linear(size.width, size.mlp_width), nn.Tanh(), nn.Linear(size.mlp_width, out_features))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
