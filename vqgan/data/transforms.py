"""From a PIL picture of any size to a square tensor in [-1, 1], and back to PIL.

Resizing is Pillow's, which low-passes before it shrinks (`F.interpolate` does not unless told to), and happens once:
crop and resize are one resampling of a box. A picture that has the right size already passes through unchanged.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from vqgan.config import Config
from vqgan.data.images import Colour, parse_colour

_RESAMPLING = Image.Resampling.LANCZOS
_Box = tuple[int, int, int, int]


class TransformConfig(Config):
    """How a picture becomes a square of `image_size` pixels."""

    image_size: int = Field(256, gt=0)
    """Height and width of what the model sees, in pixels."""
    crop: Literal["center", "random", "pad", "stretch"] = "center"
    """center: largest centred square; random: a random square (centred in evaluation); pad: whole picture on a
    background; stretch: whole picture, proportions lost."""
    smallest_crop: float = Field(0.75, gt=0, le=1)
    """With crop=random: least side of the square as a share of the shorter side (DALL-E's listing 1 has 0.67)."""
    background: Colour = "#ffffff"
    """With crop=pad: colour of the borders."""
    flip: bool = False
    """Mirror every second training picture. Only for data without text and without captions that say left or right:
    a mirrored picture makes such a caption wrong."""


class ImageTransform:
    """Applies a TransformConfig; random only where a generator is given."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self._background = parse_colour(config.background)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None) -> Float[Tensor, "3 H W"]:
        """An RGB picture as float32 (3, image_size, image_size) in [-1, 1].

        With `rng` None (evaluation) the result is a function of the picture alone: no random crop, no flip.
        Raises ValueError for another colour mode.
        """
        if image.mode != "RGB":
            raise ValueError(
                f"expected a picture of mode RGB, received {image.mode}; use vqgan.data.images.decode_image"
            )
        image = self._square(image, rng)
        if self.config.flip and rng is not None and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image))  # (H, W, 3) uint8, a copy that torch may own
        return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1).contiguous()

    def _square(self, image: Image.Image, rng: np.random.Generator | None) -> Image.Image:
        size = (self.config.image_size, self.config.image_size)
        if self.config.crop == "stretch":
            return image.resize(size, _RESAMPLING)
        if self.config.crop == "pad":
            return self._pad(image)
        box = _centred_square(image.size)
        if self.config.crop == "random" and rng is not None:
            box = _random_square(image.size, self.config.smallest_crop, rng)
        return image.resize(size, _RESAMPLING, box=box)

    def _pad(self, image: Image.Image) -> Image.Image:
        size = self.config.image_size
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        canvas = Image.new("RGB", (size, size), self._background)
        canvas.paste(image.resize((width, height), _RESAMPLING), ((size - width) // 2, (size - height) // 2))
        return canvas


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """Pictures in [-1, 1] as RGB PIL pictures: clamped, rounded to the nearest of 256 levels.

    The inverse of ImageTransform to the last bit. Raises ValueError for another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected pictures of shape (B, 3, H, W), received {tuple(images.shape)}")
    levels = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _centred_square(size: tuple[int, int]) -> _Box:
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2  # whole pixels: the right size is not resampled
    return left, top, left + side, top + side


def _random_square(size: tuple[int, int], smallest: float, rng: np.random.Generator) -> _Box:
    """A square of whole pixels, uniform in side and then in place."""
    width, height = size
    shorter = min(width, height)
    side = int(rng.integers(max(1, round(smallest * shorter)), shorter + 1))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return left, top, left + side, top + side
