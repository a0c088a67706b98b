"""Discriminators of StackGAN++ and AttnGAN, one a scale (arXiv 1710.10916; 1711.10485, `code/model.py`; papers.md E.5).

Each has two heads on one feature map: an unconditional one (is the image real?) and a conditional one (is it real *and*
does it match the sentence?). At ndf 64 and a sentence of 256: 6.3, 19.4 and 71.9 million weights for 64, 128 and 256
pixels.

Legend: B images, C channels, S sentence width.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config

_SLOPE = 0.2
"""Negative slope of the leaky ReLUs."""
_GRID = 4
"""Side of the feature map that the heads read."""
_WIDEST_HEAD = 8
"""Largest number of channels of that map, in units of `base_channels`."""


class ScaleDiscriminatorConfig(Config, fixed=("base_channels", "sentence_width", "normalize")):
    """Width of the discriminators; the same for every scale."""

    base_channels: int = Field(64, gt=0)
    """Channels after the first convolution (ndf); each further one doubles them. AttnGAN has 64, and 96 on COCO."""
    sentence_width: int = Field(256, gt=0)
    """Width of the sentence that the conditional head reads."""
    normalize: bool = True
    """Batch norm after all convolutions but the first, as in the diagram. false: none, for R1 and small batches."""


class ScaleDiscriminator(nn.Module):
    """Discriminator of images of `image_size` pixels, a power of two of at least 8."""

    def __init__(self, config: ScaleDiscriminatorConfig, image_size: int) -> None:
        super().__init__()
        if image_size < 2 * _GRID or image_size.bit_count() != 1:
            raise ValueError(f"a scale is a power of two from {2 * _GRID} pixels on, received {image_size}")
        base, norm = config.base_channels, config.normalize
        halvings = (image_size // _GRID).bit_length() - 1
        # Halve the image down to 4x4, doubling the width; then 3x3 convolutions halve the width down to 8 ndf.
        widths = [base << number for number in range(halvings)]
        layers: list[nn.Module] = [_convolution(3, base, kernel=4, norm=False)]
        layers += [_convolution(*pair, kernel=4, norm=norm) for pair in pairwise(widths)]
        width = widths[-1]
        while width > _WIDEST_HEAD * base:
            layers.append(_convolution(width, width // 2, kernel=3, norm=norm))
            width //= 2
        self.image_size = image_size
        self.feature_count = width * _GRID**2
        """Number of features of an image."""
        self.features = nn.Sequential(*layers)
        self.joint = _convolution(width + config.sentence_width, width, kernel=3, norm=norm)
        self.conditional_head = nn.Conv2d(width, 1, _GRID)
        self.unconditional_head = nn.Conv2d(width, 1, _GRID)
        self.apply(_initialize)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C 4 4"]:
        """Returns the features of images in [-1, 1] that both heads read."""
        return self.features(images)

    def unconditional(self, features: Float[Tensor, "B C 4 4"]) -> Float[Tensor, "B"]:
        """Returns logits, larger for more real."""
        return self.unconditional_head(features).flatten()

    def conditional(self, features: Float[Tensor, "B C 4 4"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
        """Returns logits, larger for more real and better matching the sentence."""
        tiled = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:]).to(features.dtype)
        return self.conditional_head(self.joint(torch.cat([features, tiled], dim=1))).flatten()


def _convolution(channels: int, out_channels: int, *, kernel: int, norm: bool) -> nn.Sequential:
    """Builds a convolution (stride 2 for kernel 4), optional batch norm, and leaky ReLU."""
    stride = 2 if kernel == 4 else 1
    layers: list[nn.Module] = [nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=1, bias=False)]
    if norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers, nn.LeakyReLU(_SLOPE))


def _initialize(module: nn.Module) -> None:
    """Initializes as AttnGAN: orthogonal convolutions, batch norm scales N(1, 0.02), biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.orthogonal_(module.weight)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
