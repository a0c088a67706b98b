"""The two discriminators: StyleGAN2's (ViT-VQGAN, 2110.04627) and pix2pix's PatchGAN (VQGAN, 2012.09841).

StyleGAN2 (Karras et al., 1912.04958), with the sizes of the rosinality port that public ViT-VQGAN code uses
(thuanz123/enhancing-transformers, `enhancing/losses/layers.py`). Two departures:

- Minibatch statistics are taken over *contiguous* images of the batch, the port's over strided ones. A global batch
  that is dealt out to processes in contiguous parts, each a multiple of the group, then gives the same logits.
- The constant factors (equalized learning rate, sqrt(2) after each activation, 1 / sqrt(2) after each sum) are
  multiplied into the weights, which is the same function with fewer passes over the activations.

PatchGAN (Isola et al., 1611.07004), as in CompVis/taming-transformers `taming/modules/discriminator/model.py`.

Letters: B batch, C channels, H W pixels, h w patches, G images that share a statistic.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vqgan.config.schema import Config, ConfigError

_SLOPE = 0.2
"""Negative slope of the leaky ReLUs, both papers."""


class StyleGAN2DiscriminatorConfig(Config, fixed=("kind", "channel_multiplier", "channels", "stddev_group")):
    """StyleGAN2's residual discriminator; one logit an image."""

    kind: Literal["stylegan2"] = "stylegan2"
    """Residual blocks from the full image down to 4x4, minibatch statistics, one logit an image."""
    channel_multiplier: float = Field(2.0, gt=0)
    """Width: min(512, 16384 * multiplier / resolution) channels at each resolution; 2 is the paper's at 256."""
    channels: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(None, strict=False)
    """Widths spelt out instead, from the full image (left) down to 4x4, e.g. [16, 24, 32, 48, 64] for 64 pixels."""
    stddev_group: int = Field(4, gt=0)
    """Neighboring images of a batch that share one minibatch standard deviation."""


class StyleGAN2Discriminator(nn.Module):
    """Images `image_size` pixels square (a power of two, at least 8) to one logit each."""

    def __init__(self, config: StyleGAN2DiscriminatorConfig, image_size: int) -> None:
        super().__init__()
        if image_size < 8 or image_size.bit_count() != 1:
            raise ConfigError(
                f"task.adversarial.discriminator: stylegan2 halves the image down to 4x4, image_size is "
                f"{image_size}; use a power of two from 8 on, or task.adversarial.discriminator.kind patchgan"
            )
        resolutions = [2**i for i in range(image_size.bit_length() - 1, 1, -1)]
        channels = config.channels or tuple(
            min(512, max(1, round(16384 * config.channel_multiplier / resolution))) for resolution in resolutions
        )
        if len(channels) != len(resolutions):
            raise ConfigError(
                f"task.adversarial.discriminator.channels: {len(channels)} widths received for the {len(resolutions)} "
                f"resolutions {resolutions} of a {image_size} pixel image; give one for each, or null for the "
                "default widths"
            )
        self.image_size = image_size
        self.stddev_group = config.stddev_group
        self.from_rgb = _EqualizedConv(3, channels[0], kernel=1, gain=math.sqrt(2))
        self.blocks = nn.Sequential(*(_ResidualBlock(*widths) for widths in pairwise(channels)))
        last = channels[-1]
        self.final_conv = _EqualizedConv(last + 1, last, kernel=3, gain=math.sqrt(2))
        self.hidden = _EqualizedLinear(last * 4 * 4, last, gain=math.sqrt(2))
        self.to_logit = _EqualizedLinear(last, 1, gain=1.0)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Returns the logits, larger for more real, of images in [-1, 1]. Raises ValueError for images of another
        size."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"the discriminator was built for {self.image_size}x{self.image_size} images and received "
                f"{images.shape[-2]}x{images.shape[-1]}; set image_size, or crop the images"
            )
        x = _leaky_relu(self.from_rgb(images))
        x = self.blocks(x)  # (B, C, 4, 4)
        x = torch.cat([x, minibatch_stddev(x, self.stddev_group).to(x.dtype)], dim=1)
        x = _leaky_relu(self.final_conv(x))
        x = _leaky_relu(self.hidden(x.flatten(1)))
        return self.to_logit(x).squeeze(1)


def minibatch_stddev(features: Float[Tensor, "B C h w"], group: int) -> Float[Tensor, "B 1 h w"]:
    """One feature map: how much each image's group varies (ProGAN, 1710.10196, section 3), in fp32.

    A group is `group` consecutive images, or the largest divisor of B below that. Standard deviation over the group,
    averaged over channels and places.
    """
    batch, _, height, width = features.shape
    group = next(size for size in range(min(group, batch), 0, -1) if batch % size == 0)
    grouped = features.float().unflatten(0, (-1, group))  # (B / G, G, C, h, w)
    stddev = (grouped.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return stddev.repeat_interleave(group).view(batch, 1, 1, 1).expand(-1, -1, height, width)


class _ResidualBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H / 2, W / 2): [3x3, blurred 3x3 of stride 2] + blurred 1x1 of stride 2, over sqrt(2)."""

    blur: Tensor

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _EqualizedConv(channels, channels, kernel=3, gain=math.sqrt(2))
        # sqrt(2) after the activation and 1 / sqrt(2) after the sum cancel.
        self.conv2 = _EqualizedConv(channels, out_channels, kernel=3, gain=1.0, stride=2, padding=0)
        self.skip = _EqualizedConv(channels, out_channels, kernel=1, gain=math.sqrt(0.5), bias=False)
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur", torch.outer(line, line).expand(channels, 1, 4, 4).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # A depthwise convolution is the fastest form on a CPU as well (against separable, pooled and shifted sums).
        channels = x.shape[1]
        y = _leaky_relu(self.conv1(x))
        y = functional.conv2d(y, self.blur, padding=2, groups=channels)
        y = _leaky_relu(self.conv2(y))
        # Blur and stride at once, then 1x1: the pixels that stride 2 would drop are never computed.
        return y + self.skip(_blurred_half(x, self.blur))


def _blurred_half(x: Tensor, blur: Tensor) -> Tensor:
    """Returns every second pixel, in each direction, of the blurred image."""
    channels = x.shape[1]
    if x.is_cpu and x.dtype == torch.bfloat16:
        # A strided depthwise convolution has no fast backward pass in bf16 on a CPU: it takes 10 times as long as this,
        # which gives the same bits.
        return functional.conv2d(x, blur, padding=1, groups=channels)[:, :, ::2, ::2]
    return functional.conv2d(x, blur, stride=2, padding=1, groups=channels)


class _EqualizedConv(nn.Conv2d):
    """Convolution, N(0, 1) weights scaled by gain / sqrt(fan in) at run time (ProGAN, section 4.1); bias by gain.

    By default the image keeps its size.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        gain: float,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> None:
        padding = kernel // 2 if padding is None else padding
        super().__init__(channels, out_channels, kernel, stride=stride, padding=padding, bias=bias)
        self.gain = gain

    def reset_parameters(self) -> None:
        _initialize_equalized(self)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * (self.gain / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * self.gain
        return functional.conv2d(x, weight, bias, self.stride, self.padding)


class _EqualizedLinear(nn.Linear):
    """Linear layer, N(0, 1) weights scaled by gain / sqrt(fan in) at run time; bias by gain."""

    def __init__(self, features: int, out_features: int, *, gain: float) -> None:
        super().__init__(features, out_features)
        self.gain = gain

    def reset_parameters(self) -> None:
        _initialize_equalized(self)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * (self.gain / math.sqrt(self.weight.shape[1])), self.bias * self.gain)


def _initialize_equalized(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _leaky_relu(x: Tensor) -> Tensor:
    """Applies a leaky ReLU; the factor sqrt(2) of StyleGAN2's activation is in the layer's gain, with which it
    commutes."""
    return functional.leaky_relu(x, _SLOPE)


class PatchDiscriminatorConfig(Config, fixed=("kind", "base_channels", "layers")):
    """pix2pix's PatchGAN; one logit a patch."""

    kind: Literal["patchgan"] = "patchgan"
    """4x4 convolutions with batch norm, one logit for each 70x70 patch (at 3 layers)."""
    base_channels: int = Field(64, gt=0)
    """Width of the first layer; it doubles with every later one, up to 8 times this."""
    layers: int = Field(3, gt=0, le=16)
    """Convolutions of stride 2; more see a larger patch."""


class PatchDiscriminator(nn.Module):
    """Images to a map of logits; 2.766M parameters by default. Batch statistics are each process's own."""

    def __init__(self, config: PatchDiscriminatorConfig, image_size: int) -> None:
        super().__init__()
        patches = image_size >> config.layers  # each stride 2 halves, rounding down; two more layers take one each
        if patches < 3:
            raise ConfigError(
                f"task.adversarial.discriminator.layers: {config.layers} halvings leave nothing of a "
                f"{image_size} pixel image; a patchgan needs {3 << config.layers} pixels, set fewer layers"
            )
        widths = [config.base_channels * min(2**i, 8) for i in range(config.layers + 1)]
        network: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i, (width, out_width) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < config.layers else 1
            network += [
                nn.Conv2d(width, out_width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out_width),
                nn.LeakyReLU(_SLOPE),
            ]
        network.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.network = nn.Sequential(*network)
        self.apply(_initialize_patchgan)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w"]:
        """Returns the logits, larger for more real, of the patches of images in [-1, 1]."""
        return self.network(images).squeeze(1)


def _initialize_patchgan(module: nn.Module) -> None:
    """Initializes as DCGAN: convolutions N(0, 0.02), batch norm scales N(1, 0.02), biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


DiscriminatorConfig = Annotated[StyleGAN2DiscriminatorConfig | PatchDiscriminatorConfig, Field(discriminator="kind")]

Discriminator = StyleGAN2Discriminator | PatchDiscriminator

DISCRIMINATORS: dict[str, Callable[[Any, int], Discriminator]] = {
    "stylegan2": StyleGAN2Discriminator,
    "patchgan": PatchDiscriminator,
}
"""Discriminators by the config's `kind`."""


def build_discriminator(config: DiscriminatorConfig, image_size: int) -> Discriminator:
    """Returns the discriminator for images of `image_size` pixels. Raises ConfigError if the two do not fit."""
    return DISCRIMINATORS[config.kind](config, image_size)
