"""Images at several scales (StackGAN++, arXiv 1710.10916): real ones for training, generated ones for display."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vqgan.data.images.transforms import to_pil


def at_scales(images: Float[Tensor, "B 3 H W"], sides: Sequence[int]) -> list[Float[Tensor, "B 3 _ _"]]:
    """Returns the images at each of `sides` pixels, by area averaging, which does not alias (papers.md H).

    Raises ValueError for a side that does not divide that of the images.
    """
    found = []
    for side in sides:
        if images.shape[-1] % side:
            raise ValueError(f"{images.shape[-1]} pixels do not divide into {side}; choose scales that halve them")
        factor = images.shape[-1] // side
        found.append(F.avg_pool2d(images, factor) if factor > 1 else images)
    return found


def side_by_side(scales: Sequence[Float[Tensor, "B 3 _ _"]]) -> list[Image.Image]:
    """Returns one sheet for each image: all its scales from left to right, enlarged to the largest (nearest
    neighbor)."""
    side = max(images.shape[-1] for images in scales)
    columns = [[image.resize((side, side), Image.Resampling.NEAREST) for image in to_pil(part)] for part in scales]
    rows = []
    for row in zip(*columns, strict=True):
        sheet = Image.new("RGB", (side * len(row), side))
        for column, image in enumerate(row):
            sheet.paste(image, (side * column, 0))
        rows.append(sheet)
    return rows
