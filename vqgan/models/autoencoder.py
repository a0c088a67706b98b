"""What every stage-1 autoencoder offers to the training task and to `ImageTokenizer`."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from vqgan.quantizers import NearestQuantizer, Quantized


class Decoded(NamedTuple):
    """A decoder's output.

    images: the picture, (B, 3, H, W), nominally in [-1, 1] but not clamped.
    mean, log_scale: the logit-Laplace parameters of each element, where the decoder models a likelihood.
    """

    images: Float[Tensor, "B 3 H W"]
    mean: Float[Tensor, "B 3 H W"] | None = None
    log_scale: Float[Tensor, "B 3 H W"] | None = None


class AutoencoderOutput(NamedTuple):
    """decoded: the reconstruction; latents: before quantisation; quantized: None while training without codes."""

    decoded: Decoded
    latents: Float[Tensor, "B N D"]
    quantized: Quantized | None


class Autoencoder(nn.Module, ABC):
    """Images to latents, latents to codes, codes to images.

    `image_size` in pixels, `grid` (h, w) of codes; N = h * w, row-major.
    """

    quantizer: NearestQuantizer
    image_size: int
    grid: tuple[int, int]

    @abstractmethod
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Latents before quantisation, of images in [-1, 1]."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "B N D"]) -> Decoded:
        """The picture that latents (quantised or not) stand for."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where the adaptive adversarial weight compares gradients."""

    def forward(self, images: Float[Tensor, "B 3 H W"], quantize: bool = True) -> AutoencoderOutput:
        """Reconstruct; with `quantize=False` the decoder reads the continuous latents."""
        latents = self.encode(images)
        if not quantize:
            return AutoencoderOutput(self.decode(self.quantizer.normalize(latents)), latents, None)
        quantized = self.quantizer(latents)
        return AutoencoderOutput(self.decode(quantized.latents), latents, quantized)
