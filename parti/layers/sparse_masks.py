"""Which image states an image state reads: DALL-E's masks (arXiv 2102.12092, figure 11; papers.md C.2).

States are in raster order on a grid (h, w). Each mask is a set of distances: state i reads state i - distance if that
exists. So every mask is causal, and rows and kernels wrap around the grid's border into the previous or next row. The
paper shows the wrapping for rows; it does not show the border of the convolutional mask, where public
re-implementations differ.

Legend: N = h * w image states, T text states, S = T + N.
"""

from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

MaskKind = Literal["row", "column", "convolution", "full"]
"""row: the last w states and itself; column: the same column; convolution: a kernel around it; full: all before."""


def dalle_layer_kinds(depth: int) -> list[MaskKind]:
    """Returns the mask of each of `depth` layers: column in every fourth from the second on, row in the others, and the
    convolution in the last. Of the paper's 64: 47 row, 16 column, 1 convolution."""
    kinds: list[MaskKind] = ["column" if layer % 4 == 2 else "row" for layer in range(1, depth)]
    return [*kinds, "convolution"]


def distances_back(kind: MaskKind, grid: tuple[int, int], kernel: int) -> list[int]:
    """Returns the distances in raster order to the states that a state reads: ascending, 0 is the state itself.

    `kernel` is the odd side of the convolution's square, which is centered on the state. On 32x32 states a kernel of
    11 gives 61 distances, (11 * 11 + 1) / 2, up to 165.
    """
    height, width = grid
    if kind == "row":
        distances = set(range(width + 1))
    elif kind == "column":
        distances = {width * rows for rows in range(height)}
    elif kind == "convolution":
        reach = kernel // 2
        distances = {width * rows - columns for rows in range(reach + 1) for columns in range(-reach, reach + 1)}
    else:
        distances = set(range(height * width))
    return sorted(distance for distance in distances if 0 <= distance < height * width)


def image_mask(
    kind: MaskKind, grid: tuple[int, int], kernel: int, device: torch.device | None = None
) -> Bool[Tensor, "N N"]:
    """Returns the mask, true where the row's state reads the column's."""
    states = torch.arange(grid[0] * grid[1], device=device)
    is_read = torch.zeros(len(states), dtype=torch.bool, device=device)
    is_read[torch.tensor(distances_back(kind, grid, kernel), device=device)] = True
    return is_read[(states[:, None] - states).abs()].tril()


def text_image_mask(text_length: int, image: Bool[Tensor, "N N"]) -> Bool[Tensor, "S S"]:
    """Returns the mask over text and image states in one row: text reads the text up to itself, an image state all text
    and of the image what `image` says."""
    length = text_length + len(image)
    mask = torch.ones(length, length, dtype=torch.bool, device=image.device).tril()
    mask[text_length:, text_length:] = image
    return mask
