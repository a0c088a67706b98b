"""From a PIL image of any size to a square tensor in [-1, 1], and back to PIL.

Resizing low-passes before it shrinks (`F.interpolate` does not by default): by Lanczos, and in the crops of DALL-E
by area, as the paper does. An image that has the right size already passes through unchanged.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config
from vqgan.data.images.area import shrink_by_area
from vqgan.data.images.decode import Color, parse_color
from vqgan.data.images.resizing import resized

_Box = tuple[int, int, int, int]


class TransformConfig(Config, fixed=("image_size",), may_change=("crop", "smallest_crop", "background", "flip")):
    """How an image becomes a square of `image_size` pixels."""

    image_size: int = Field(256, gt=0, le=8192)
    """Height and width of what the model sees, in pixels."""
    crop: Literal["center", "random", "dalle_tokenizer", "dalle_transformer", "pad", "stretch"] = "center"
    """center: largest centered square; random: a random square, some smaller; dalle_tokenizer: the largest square
    anywhere, shrunk by area to 9/8 to 12/8 of image_size, then a random crop (DALL-E's listing 1, for stage 1);
    dalle_transformer: the largest square near the center, shrunk to 8/8 to 9/8, then a random crop (listing 2, for
    stage 2); pad: whole image on a background; stretch: whole image, proportions lost. Evaluation takes the
    center where training crops at random."""
    smallest_crop: float = Field(0.75, gt=0, le=1)
    """With crop=random: least side of the square as a share of the shorter side."""
    background: Color = "#ffffff"
    """With crop=pad: color of the borders."""
    flip: bool = False
    """Mirror every second training image. Only for data without text and without captions that say left or right:
    a mirrored image makes such a caption wrong."""

    @property
    def evaluation_crop(self) -> str:
        """How evaluation crops: center, pad or stretch."""
        return self.crop if self.crop in ("pad", "stretch") else "center"

    @property
    def min_decode_side(self) -> int:
        """Shorter side in pixels from which on a larger image looks no different after this transform.

        Twice what is needed: whoever shrinks an image to this (`decode_image(..., min_side=)`) leaves the antialiased
        half of the way to the transform.
        """
        needed = {
            "random": self.image_size / self.smallest_crop,
            "dalle_tokenizer": _eighths(12, self.image_size),
            "dalle_transformer": _eighths(9, self.image_size),
        }
        return int(np.ceil(2 * needed.get(self.crop, self.image_size)))


class ImageTransform:
    """Applies a TransformConfig; random only where a generator is given."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self._background = parse_color(config.background)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None) -> Float[Tensor, "3 H W"]:
        """Returns an RGB image as float32 (3, image_size, image_size) in [-1, 1].

        With `rng` None (evaluation) the result is a function of the image alone: no random crop, no flip.
        Raises ValueError for another color mode.
        """
        if image.mode != "RGB":
            raise ValueError(
                f"expected an image of mode RGB, received {image.mode}; use vqgan.data.images.decode.decode_image"
            )
        pixels = self._square(image, rng)
        if self.config.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return pixels.float().div_(127.5).sub_(1).contiguous()

    def _square(self, image: Image.Image, rng: np.random.Generator | None) -> UInt8[Tensor, "3 H W"]:
        crop, size = self.config.crop if rng is not None else self.config.evaluation_crop, self.config.image_size
        if crop == "stretch":
            return resized(image, size, size)
        if crop == "pad":
            return self._padded(image)
        if rng is None or crop == "center":
            return resized(image.crop(_centered_square(image.size)), size, size)
        if crop == "random":
            return resized(image.crop(_random_square(image.size, self.config.smallest_crop, rng)), size, size)
        return _dalle(image, size, rng, tokenizer=crop == "dalle_tokenizer")

    def _padded(self, image: Image.Image) -> UInt8[Tensor, "3 H W"]:
        size = self.config.image_size
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        left, top = (size - width) // 2, (size - height) // 2
        canvas = torch.tensor(self._background, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
        canvas[:, top : top + height, left : left + width] = resized(image, height, width)
        return canvas


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """Returns images in [-1, 1] as RGB PIL images: clamped, rounded to the nearest of 256 levels.

    The inverse of ImageTransform to the last bit. Raises ValueError for another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images of shape (B, 3, H, W), received {tuple(images.shape)}")
    levels = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _dalle(image: Image.Image, size: int, rng: np.random.Generator, *, tokenizer: bool) -> UInt8[Tensor, "3 size size"]:
    """DALL-E's random crops (arXiv 2102.12092, listing 1 for the tokenizer, 2 for the transformer), without the flip.

    The paper's code fails on an image whose shorter side is below `size`; here such a square is enlarged to `size`.
    """
    width, height = image.size
    shorter = min(width, height)
    # 1. The largest square: anywhere, or with its offset in the middle quarter of where it can be.
    if tokenizer:
        left, top = (int(rng.integers(side - shorter + 1)) for side in (width, height))
    else:
        left, top = (_central_offset(side - shorter, rng) for side in (width, height))
    square = image.crop((left, top, left + shorter, top + shorter))
    # 2. Shrunk a little less than to the size; a small image is never enlarged by more than it needs.
    if shorter < size:
        return resized(square, size, size)
    least, most = (_eighths(9, size), _eighths(12, size)) if tokenizer else (size, _eighths(9, size))
    side = int(rng.integers(min(shorter, least), min(shorter, most) + 1))
    # 3. A random crop.
    left, top = int(rng.integers(side - size + 1)), int(rng.integers(side - size + 1))
    if side == shorter:
        return resized(square.crop((left, top, left + size, top + size)), size, size)
    return torch.from_numpy(shrink_by_area(np.asarray(square), side, top, left, size))


def _central_offset(room: int, rng: np.random.Generator) -> int:
    least = 3 * room // 8
    return int(rng.integers(least, max(least + 1, 5 * room // 8)))


def _eighths(count: int, size: int) -> int:
    return round(count / 8 * size)


def _centered_square(size: tuple[int, int]) -> _Box:
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2  # whole pixels: the right size is not resampled
    return left, top, left + side, top + side


def _random_square(size: tuple[int, int], smallest: float, rng: np.random.Generator) -> _Box:
    """Returns a square of whole pixels, uniform in side and then in place."""
    width, height = size
    shorter = min(width, height)
    side = int(rng.integers(max(1, round(smallest * shorter)), shorter + 1))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return left, top, left + side, top + side
