"""Base class of the stage-1 autoencoders: an encoder, a quantizer and a decoder.

The three are modules of their own, so that any quantizer goes with any pair of networks, and so that a decoder can be
trained alone on frozen codes.

Letters: B batch, H W pixels, h w the grid of latents, N = h * w, row-major, D width of latents before quantization,
E after it.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqgan.config.changes import fixed_settings
from vqgan.config.schema import Config
from vqgan.layers.logit_laplace import logit_laplace_mean
from vqgan.quantizers import NearestConfig, Quantized, Quantizer, QuantizerConfig

Grid = tuple[int, int]


class AutoencoderConfig(Config, ABC, fixed=("kind", "image_size", "output")):
    """Base of the configs of all autoencoders."""

    kind: str
    """Kind of the autoencoder: see `vqgan.models.AUTOENCODERS`."""
    image_size: int = Field(256, gt=0)
    """Side of the square training image in pixels."""
    output: Literal["rgb", "logit_laplace"] = "rgb"
    """What the decoder emits: raw RGB (Parti), or mean and log scale of a logit-Laplace density (ViT-VQGAN, DALL-E)."""
    quantizer: QuantizerConfig = NearestConfig()
    """The quantizer."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels, in each direction, to one latent."""

    @property
    def output_channels(self) -> int:
        """Output channels of the decoder."""
        return {"rgb": 3, "logit_laplace": 6}[self.output]

    def settings_of_codes(self, *, with_defaults: bool = True) -> dict[str, Any]:
        """Returns the settings that determine an image's codes, by dotted names: neither the decoder's, nor what
        only training knows, such as weights of losses. `with_defaults`: see `fixed_settings`."""
        settings = fixed_settings(self, with_defaults=with_defaults)
        return {name: value for name, value in settings.items() if name.partition(".")[0] not in ("decoder", "output")}

    @model_validator(mode="after")
    def _check_stride(self) -> "AutoencoderConfig":
        if self.image_size % self.stride:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the {self.stride} pixels that a code stands for; "
                f"use {max(1, self.image_size // self.stride) * self.stride}, or another model size"
            )
        return self


class Decoded(NamedTuple):
    """A decoder's output.

    images: the image, (B, 3, H, W), nominally in [-1, 1] but not clamped.
    mean, log_scale: the logit-Laplace parameters of each element, where the decoder models a likelihood.
    """

    images: Float[Tensor, "B 3 H W"]
    mean: Float[Tensor, "B 3 H W"] | None = None
    log_scale: Float[Tensor, "B 3 H W"] | None = None

    @classmethod
    def of(cls, output: Float[Tensor, "B C H W"]) -> "Decoded":
        """From a network's raw output: 3 channels are RGB, 6 are mean and log scale of a logit-Laplace density."""
        output = output.float()
        if output.shape[1] == 3:
            return cls(output)
        mean, log_scale = output.chunk(2, dim=1)
        return cls(logit_laplace_mean(mean), mean, log_scale)


class AutoencoderOutput(NamedTuple):
    """decoded: the reconstruction; latents: before quantization; quantized: None while training without codes."""

    decoded: Decoded
    latents: Float[Tensor, "B N D"]
    quantized: Quantized | None


class Decoder(nn.Module, ABC):
    """Decodes latents to images."""

    @abstractmethod
    def forward(self, latents: Float[Tensor, "B N E"], grid: Grid) -> Decoded:
        """Returns the image that latents (quantized or not), laid out on `grid`, stand for."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The last weight, where the adaptive adversarial weight compares gradients."""


class Autoencoder(nn.Module):
    """Images to latents, latents to codes, codes to images.

    `encoder` maps images (B, 3, H, W) in [-1, 1] to latents (B, N, D). Reads images of any size whose sides are
    multiples of `stride`; `image_size` and `grid` are those of training.
    """

    def __init__(
        self, config: AutoencoderConfig, *, encoder: nn.Module, quantizer: Quantizer, decoder: Decoder
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.stride = config.stride
        self.grid = self.grid_of(config.image_size, config.image_size)
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def freeze_codes(self) -> None:
        """Freezes encoder and quantizer, so that codes cannot change and only the decoder trains (Parti, papers.md
        D.5)."""
        for part in (self.encoder, self.quantizer):
            part.requires_grad_(False)
            part.eval()

    def repeated_layers(self) -> list[nn.Module]:
        """What is compiled, or divided between processes: encoder and decoder, each as one."""
        return [self.encoder, self.decoder]

    def replicated_modules(self) -> list[nn.Module]:
        """What is whole on every process in any case: codes are looked up, placed and counted outside of training's
        forward pass."""
        return [self.quantizer]

    @property
    def codes_are_frozen(self) -> bool:
        """Whether `freeze_codes` was called."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def grid_of(self, height: int, width: int) -> Grid:
        """Returns the grid of latents of an image. Raises ValueError where a side is not a multiple of the stride."""
        if height % self.stride or width % self.stride or not height or not width:
            raise ValueError(
                f"this tokenizer reads images whose sides are multiples of {self.stride} pixels, received "
                f"{height}x{width}; resize or crop to {max(1, height // self.stride) * self.stride}x"
                f"{max(1, width // self.stride) * self.stride}"
            )
        return height // self.stride, width // self.stride

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Returns latents before quantization, of images in [-1, 1]. Raises ValueError for sizes that are no
        multiple."""
        self.grid_of(*images.shape[-2:])
        return self.encoder(images)

    def decode(self, latents: Float[Tensor, "B N E"], grid: Grid | None = None) -> Decoded:
        """Returns the image that latents (quantized or not) stand for; `grid` where it is not that of training."""
        return self.decoder(latents, grid or self.grid)

    def forward(self, images: Float[Tensor, "B 3 H W"], quantize: bool = True) -> AutoencoderOutput:
        """Reconstructs images; with `quantize=False` the decoder reads the continuous latents."""
        grid = self.grid_of(*images.shape[-2:])
        latents = self.encode(images)
        if not quantize:
            return AutoencoderOutput(self.decode(self.quantizer.unquantized(latents), grid), latents, None)
        quantized = self.quantizer(latents)
        return AutoencoderOutput(self.decode(quantized.latents, grid), latents, quantized)
