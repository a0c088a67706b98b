"""The noise that a real image could have been drawn with: what lets the distance ask for that image.

A caption has many images, and what is nearest to all of them is a blur, whatever the noise. Here an encoder looks at
the real image and gives the noise that says which one it is, so that nothing is left to blur; a divergence holds that
noise to N(0, 1), from which images are drawn afterwards (VAE-GAN, arXiv 1512.09300; the first half of BicycleGAN,
arXiv 1711.11586, section 3.2). Departure: the drawing has none. It serves in training alone; what is shipped is the
generator as drawn.

Legend: B images, b of them explained, C channels, T text positions, Z channels of the noise, h w its grid.
"""

import math

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from parti.fused.fusion import group_norm
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from vqgan.config.schema import Config


class PosteriorEncoderConfig(Config, fixed=("base_channels", "most_channels")):
    """From real images to the noise of their kind."""

    base_channels: int = Field(32, gt=0)
    """Channels after the first convolution: each further one doubles them."""
    most_channels: int = Field(256, gt=0)
    """Where the doubling ends."""


class PosteriorEncoder(nn.Module):
    """Strided convolutions down to the noise's grid, then one linear layer that sees all of it."""

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
        """Means and logarithms of the variances, in fp32, of the noise of images in [-1, 1]."""
        moments = self.moments(self.features(images).flatten(1)).float()
        mean, log_variance = moments.unflatten(1, (2, *self.noise_shape)).unbind(1)
        return mean, log_variance


class GeneratorWithEncoder(nn.Module):
    """Generator and encoder as the one network that data-parallel training wants."""

    def __init__(self, generator: SynthesisGenerator, encoder: PosteriorEncoder | None) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = encoder

    def forward(
        self, ids: Int64[Tensor, "B T"], noise: Float[Tensor, "B Z h w"], real: Float[Tensor, "b 3 H W"], scales: int
    ) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Images at the first `scales`, the first b with the noise of `real`; and the divergence of that noise.

        `noise` is N(0, 1) and gives the encoder its random numbers too. Where b is 0 it is what all are drawn with, and
        the divergence is 0.
        """
        resting = self.generator.weights_beyond(scales)
        count = len(real)
        if self.encoder is None or not count:
            resting += [] if self.encoder is None else list(self.encoder.parameters())
            known = noise.new_zeros(())
        else:
            mean, log_variance = self.encoder(real)
            noise = torch.cat([mean + (log_variance / 2).exp() * noise[:count], noise[count:]])
            known = divergence(mean, log_variance)
        # Data-parallel training wants every weight in the loss: those that rest are there with nothing.
        known = torch.stack([known, *(0 * weight.sum() for weight in resting)]).sum()
        return self.generator(ids, noise, scales), known


def divergence(mean: Float[Tensor, "B Z h w"], log_variance: Float[Tensor, "B Z h w"]) -> Float[Tensor, ""]:
    """Of N(mean, variance) from N(0, 1), in nats an image (Kingma and Welling, arXiv 1312.6114, appendix B)."""
    each = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    return each.sum((1, 2, 3)).mean()
