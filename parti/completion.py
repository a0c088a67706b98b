"""Image completion: known codes of an image, and a mask on the code grid that says which of them to keep.

Codes are sampled in raster order and attend only to those before them: a known top half is continued, a known bottom
half is copied, but the codes above it do not take it into account (see `parti.sampling.generate`).

Legend: N codes on a grid (h, w).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from parti.sampling.generate import KnownCodes
from vqgan.data.images.decode import decode_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig, to_pil
from vqgan.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class Completion:
    """An image, center-cropped to a square, and the mask (h, w) of the codes to keep.

    Codes are kept, not pixels: the known part of the result is the image tokenizer's reconstruction.
    """

    image: Image.Image
    keep: Bool[Tensor, "h w"]

    @property
    def share(self) -> float:
        """Fraction of the codes that are kept."""
        return self.keep.float().mean().item()

    def given(self, tokenizer: ImageTokenizer, images: int, device: torch.device) -> KnownCodes:
        """Returns the image's codes and the mask of the known ones, for each of `images` rows.

        Raises ValueError if `keep` is not on the tokenizer's grid, or keeps everything or nothing, UnusableSample
        for an image without a sensible meaning.
        """
        if tuple(self.keep.shape) != tokenizer.grid:
            raise ValueError(
                f"keep says whether each code of the grid {tokenizer.grid} stays, received {tuple(self.keep.shape)}; "
                "parti.completion.keep_top and known_where_black make one"
            )
        if self.keep.all() or not self.keep.any():
            what = "everything stays, there is nothing to draw" if self.keep.all() else "nothing stays of the image"
            raise ValueError(f"{what}; keep some codes and draw others")
        transform = ImageTransform(TransformConfig(image_size=tokenizer.image_size))
        pixels = transform(decode_image(self.image, "the given image"), None)[None].to(device)
        return KnownCodes(
            tokenizer.encode(pixels).expand(images, -1), self.keep.flatten().to(device).expand(images, -1)
        )

    def shown(self, tokenizer: ImageTokenizer, device: torch.device) -> Image.Image:
        """Returns the known part, decoded from its codes, and gray elsewhere. Raises the errors of `given`."""
        image = tokenizer.decode(self.given(tokenizer, 1, device).codes)
        rows, columns = (
            torch.arange(side, device=device) * cells // side
            for side, cells in zip(image.shape[-2:], tokenizer.grid, strict=True)
        )
        kept = self.keep.to(device)[rows[:, None], columns]
        return to_pil(torch.where(kept, image, torch.zeros_like(image)))[0]


def keep_top(grid: tuple[int, int], share: float) -> Bool[Tensor, "h w"]:
    """Returns the mask that keeps the upper `share` of the rows: at least one row, and not the last.

    Raises ValueError outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that stays lies between 0 and 1, received {share}")
    rows = min(grid[0] - 1, max(1, round(share * grid[0])))
    return (torch.arange(grid[0]) < rows)[:, None].expand(grid)


def known_where_black(mask: Image.Image, grid: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Returns the mask that keeps codes whose pixels are all black in `mask`; codes with any lighter pixel are sampled.

    The threshold is half gray. The mask is center-cropped to a square like the image and may have another size;
    transparent pixels count as light.
    """
    side = min(mask.size)
    left, top = (mask.width - side) // 2, (mask.height - side) // 2
    square = decode_image(mask, "the mask").convert("L").crop((left, top, left + side, top + side))
    light = np.array(square) >= 128
    rows, columns = ([_pixels(cell, cells, side) for cell in range(cells)] for cells in grid)
    return torch.tensor([[not light[row, column].any() for column in columns] for row in rows])


def _pixels(cell: int, cells: int, side: int) -> slice:
    """Returns the range of the `side` pixels that each of `cells` equal parts of the side touches."""
    return slice(cell * side // cells, -(-(cell + 1) * side // cells))
