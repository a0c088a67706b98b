"""What a masked patch is predicted as: its pixels, a class of its mean color, or a code of an image tokenizer.

Images are in [-1, 1] at the edges of this room, as everywhere in the toolkit; the encoders read, and pixel targets are
in, ImageNet's units, as in all the papers: so published weights fit, and exported ones want the usual preprocessing.

Legend: B batch, H W pixels, p patch side, N patches row by row, P = p * p * 3 numbers of a patch.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from vqgan.errors import ConfigError
from vqgan.image_tokenizer import ImageTokenizer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of images in [0, 1]."""
LEVELS = 8
"""Bins a channel: 3 bits."""
MEAN_COLOR_CLASSES = LEVELS**3
_EPSILON = 1e-6


def to_imagenet(images: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Images in [-1, 1] in ImageNet's units."""
    mean, std = _constants(images)
    return ((images + 1) / 2 - mean) / std


def from_imagenet(pixels: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """The inverse of `to_imagenet`."""
    mean, std = _constants(pixels)
    return (pixels * std + mean) * 2 - 1


def patchify(images: Float[Tensor, "B 3 H W"], patch_size: int) -> Float[Tensor, "B N P"]:
    """The patches of images, the numbers of each ordered by (row, column, channel), as MAE's are."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Float[Tensor, "B N P"], grid: tuple[int, int]) -> Float[Tensor, "B 3 H W"]:
    """The inverse of `patchify`, for a grid of patches (h, w)."""
    side = round((patches.shape[-1] // 3) ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=side, q=side)


def normalize_patches(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Each patch with mean 0 and variance 1 (MAE, section 4, with its code's unbiased variance); flat ones become 0."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + _EPSILON).sqrt()


def restore_patches(normalized: Float[Tensor, "B N P"], true: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Normalized patches with the mean and variance of the true ones: to be looked at, as the model had neither."""
    return normalized * (true.var(-1, keepdim=True) + _EPSILON).sqrt() + true.mean(-1, keepdim=True)


def mean_color_classes(images: Float[Tensor, "B 3 H W"], patch_size: int) -> Int64[Tensor, "B N"]:
    """Which of 512 classes each patch's mean color is: 3 bits a channel (ViT, appendix B.1.2)."""
    means = F.avg_pool2d((images.float() + 1) / 2, patch_size).flatten(2)  # (B, 3, N) in [0, 1]
    bins = (means * LEVELS).long().clamp(0, LEVELS - 1)
    return (bins[:, 0] * LEVELS + bins[:, 1]) * LEVELS + bins[:, 2]


def color_of_classes(classes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N 3"]:
    """The middle of each class, in [-1, 1]."""
    bins = torch.stack([classes // LEVELS**2, classes // LEVELS % LEVELS, classes % LEVELS], -1)
    return (bins + 0.5) / LEVELS * 2 - 1


@runtime_checkable
class ClassTargets(Protocol):
    """Targets that are one of `classes` for each patch."""

    @property
    def classes(self) -> int: ...

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Int64[Tensor, "B N"]: ...

    def draw(self, classes: Int64[Tensor, "B N"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Images of these classes, of the size of `images`."""
        ...


class MeanColors:
    """The classes of `mean_color_classes`."""

    classes = MEAN_COLOR_CLASSES

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Int64[Tensor, "B N"]:
        return mean_color_classes(images, self.patch_size)

    def draw(self, classes: Int64[Tensor, "B N"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        height = images.shape[-2] // self.patch_size
        flat = rearrange(color_of_classes(classes), "b (h w) c -> b c h w", h=height)
        return F.interpolate(flat, scale_factor=float(self.patch_size))


class TokenizerCodes:
    """The codes of an image tokenizer, one a patch: it reads the image at `size` pixels, the encoder at `image_size`.

    BEiT, section 2.1: 112 pixels through a tokenizer of stride 8, and 224 through patches of 16, are both 14 x 14.
    Raises ConfigError where the grids differ.
    """

    def __init__(self, tokenizer: ImageTokenizer, grid: tuple[int, int], size: int) -> None:
        try:
            codes = tokenizer.grid_of(size, size)
        except ValueError as error:
            raise ConfigError(f"target_size {size}: {error}; choose a multiple of the tokenizer's stride") from None
        if codes != grid:
            fitting = tokenizer.image_size // tokenizer.grid[0] * grid[0]
            raise ConfigError(
                f"the image tokenizer makes {codes[0]}x{codes[1]} codes of {size} pixels, and the encoder has "
                f"{grid[0]}x{grid[1]} patches: each patch needs one code; set target_size to {fitting}, or "
                "model.patch_size to another"
            )
        self.tokenizer = tokenizer
        self.grid = grid
        self.size = size

    @property
    def classes(self) -> int:
        return self.tokenizer.vocab_size

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Int64[Tensor, "B N"]:
        return self.tokenizer.encode(self._resized(images, self.size), check_range=False)

    def draw(self, classes: Int64[Tensor, "B N"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return self._resized(self.tokenizer.decode(classes, self.grid), images.shape[-1])

    def _resized(self, images: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 H2 W2"]:
        if images.shape[-1] == side:
            return images
        return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def _constants(images: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std
