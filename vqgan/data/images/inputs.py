"""Images as people have them (PIL images, files, arrays, tensors) as one batch in [-1, 1]."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vqgan.data.images.decode import decode_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig, to_pil
from vqgan.data.source import DataError, UnusableSample

ImageInput = Image.Image | str | Path | np.ndarray | Tensor
"""One image: PIL, a file's path, an array (H, W, 3) or a tensor (3, H, W)."""
ImagesInput = ImageInput | Sequence[ImageInput]
"""One image or several; arrays (B, H, W, 3) and tensors (B, 3, H, W) hold several."""
OutputType = Literal["pt", "pil"]
"""What images are returned as: a tensor in [-1, 1], or a list of PIL images (diffusers' words)."""

_ROUNDING = 1e-3
"""How far rounding, in bf16 or by a resize, may carry a value beyond [-1, 1]."""


def load_images(
    images: ImagesInput, image_size: int | None = None, *, check_range: bool = True
) -> Float[Tensor, "B 3 H W"]:
    """Returns images of any kind as one float32 batch in [-1, 1].

    PIL images and files are decoded as the loaders do it (upright, transparency on white); with `image_size` their
    largest centered square is resized to it, as in evaluation. Arrays and tensors keep their size: uint8 in [0, 255],
    floating point in [-1, 1], which is checked unless `check_range` is off (the check waits for a GPU).

    Raises:
        DataError: for a file that cannot be decoded.
        ValueError: for another shape, type or range, and for images of several sizes.
    """
    if isinstance(images, Tensor | np.ndarray):
        return _from_array(images, check_range)
    several = [images] if isinstance(images, Image.Image | str | Path) else images
    batches = [_from_one(image, image_size, check_range) for image in several]
    if not batches:
        raise ValueError("expected one image at least, received an empty list")
    sizes = sorted({tuple(batch.shape[2:]) for batch in batches})
    if len(sizes) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in sizes[:4])
        raise ValueError(f"images of one batch have one size, received {found}; resize them, or pass one at a time")
    return torch.cat(batches)


def as_output(
    images: Float[Tensor, "B 3 H W"], output_type: OutputType
) -> Float[Tensor, "B 3 H W"] | list[Image.Image]:
    """Returns images in [-1, 1] as they are (`pt`) or as PIL images (`pil`). Raises ValueError for another word."""
    if output_type not in ("pt", "pil"):
        raise ValueError(f"output_type is 'pt' or 'pil', received {output_type!r}")
    return to_pil(images) if output_type == "pil" else images


def _from_one(image: Any, image_size: int | None, check_range: bool) -> Float[Tensor, "B 3 H W"]:
    if isinstance(image, Tensor | np.ndarray):
        return _from_array(image, check_range)
    if not isinstance(image, Image.Image | str | Path):
        raise ValueError(f"expected a PIL image, a path, an array or a tensor, received {type(image).__name__}")
    name = "the image" if isinstance(image, Image.Image) else str(image)
    try:
        rgb = decode_image(Path(image).expanduser() if isinstance(image, str) else image, name)
    except UnusableSample as unusable:
        raise DataError(str(unusable)) from None
    if image_size is not None:
        return ImageTransform(TransformConfig(image_size=image_size))(rgb, None)[None]
    return _scaled(torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None])


def _from_array(array: Tensor | np.ndarray, check_range: bool) -> Float[Tensor, "B 3 H W"]:
    channels = 1 if isinstance(array, Tensor) else -1
    layout = "tensor (3, H, W) or (B, 3, H, W)" if channels == 1 else "array (H, W, 3) or (B, H, W, 3)"
    batch = array[None] if array.ndim == 3 else array
    if batch.ndim != 4 or batch.shape[channels] != 3:
        raise ValueError(f"expected images as a {layout}, received shape {tuple(array.shape)}")
    tensor = batch if isinstance(batch, Tensor) else torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2)
    if tensor.dtype == torch.uint8:
        return _scaled(tensor)
    if not tensor.is_floating_point():
        raise ValueError(f"expected uint8 in [0, 255] or floating point in [-1, 1], received {tensor.dtype}")
    tensor = tensor.float()
    if check_range and tensor.numel():
        lowest, highest = (float(end) for end in tensor.detach().aminmax())
        if not (lowest >= -1 - _ROUNDING and highest <= 1 + _ROUNDING):  # also true of NaN
            raise ValueError(
                f"images in floating point lie in [-1, 1], received {lowest:g} to {highest:g}; pass levels of [0, 255] "
                "as uint8, or scale them by x / 127.5 - 1"
            )
    return tensor


def _scaled(levels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    return levels.float().div(127.5).sub(1)
