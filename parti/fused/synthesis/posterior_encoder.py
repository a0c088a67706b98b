"""Posterior encoder: the noise for which the generator should reproduce a given real image.

A caption has many images, and the nearest image to all of them is a blur, whatever the noise. The encoder maps a real
image to the noise that identifies it, so that the reconstruction distance no longer favors a blur; a divergence keeps
that noise close to N(0, 1), from which images are sampled later (VAE-GAN, arXiv 1512.09300; the first half of
BicycleGAN, arXiv 1711.11586, section 3.2). Departure: the diagram has no encoder. It is used in training only; a saved
model is the generator of the diagram.

Legend: B images, b of them encoded, C channels, T text positions, Z channels of the noise, h w its grid.
"""

import math

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parti.fused.fusion import group_norm
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from vqgan.config.schema import Config


class PosteriorEncoderConfig(Config, fixed=("base_channels", "most_channels")):
    """Sizes of the encoder from real images to noise."""

    base_channels: int = Field(32, gt=0)
    """Channels after the first convolution; each further one doubles them."""
    most_channels: int = Field(256, gt=0)
    """Largest number of channels."""


class PosteriorEncoder(nn.Module):
    """Strided convolutions down to the noise's grid, then one linear layer over all of it."""

    def __init__(self, config: PosteriorEncoderConfig, model: SynthesisConfig) -> None:
        super().__init__()
        self.noise_shape = model.noise_shape
        side = model.noise_shape[-1]
        halvings = (model.sides[-1] // side).bit_length() - 1
        widths = [min(config.base_channels << number, config.most_channels) for number in range(halvings)]
        layers: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), group_norm(after), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.moments = nn.Linear(widths[-1] * side**2, 2 * math.prod(model.noise_shape))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B Z h w"], Float[Tensor, "B Z h w"]]:
        """Returns means and log variances, in fp32, of the noise of images in [-1, 1]."""
        moments = self.moments(self.features(images).flatten(1)).float()
        mean, log_variance = moments.unflatten(1, (2, *self.noise_shape)).unbind(1)
        return mean, log_variance


class GeneratorWithEncoder(nn.Module):
    """Generator and encoder as one module, as data-parallel training needs."""

    def __init__(self, generator: SynthesisGenerator, encoder: PosteriorEncoder | None) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = encoder

    def repeated_layers(self) -> list[nn.Module]:
        """Returns the layers of the generator, and the encoder as one."""
        return [*self.generator.repeated_layers(), *([] if self.encoder is None else [self.encoder])]

    def forward(
        self, ids: Int64[Tensor, "B T"], noise: Float[Tensor, "B Z h w"], real: Float[Tensor, "b 3 H W"], scales: int
    ) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Returns images at the first `scales`, the first b with the noise of `real`, and the divergence of that noise.

        `noise` is N(0, 1) and also serves the encoder's reparameterization. With b = 0 all images use it, and the
        divergence is 0.
        """
        unused = self.generator.weights_beyond(scales)
        count = len(real)
        if self.encoder is None or not count:
            unused += [] if self.encoder is None else list(self.encoder.parameters())
            kl = noise.new_zeros(())
        else:
            mean, log_variance = self.encoder(real)
            noise = torch.cat([mean + (log_variance / 2).exp() * noise[:count], noise[count:]])
            kl = divergence(mean, log_variance)
        # Data-parallel training needs every weight in the loss: unused ones enter with zero. Sharded ones need not.
        kl = torch.stack([kl, *(0 * weight.sum() for weight in unused if not isinstance(weight, DTensor))]).sum()
        return self.generator(ids, noise, scales), kl


def divergence(mean: Float[Tensor, "B Z h w"], log_variance: Float[Tensor, "B Z h w"]) -> Float[Tensor, ""]:
    """Returns KL(N(mean, variance) || N(0, 1)) in nats per image (Kingma and Welling, arXiv 1312.6114, appendix B)."""
    each = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    return each.sum((1, 2, 3)).mean()
