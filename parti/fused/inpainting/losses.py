"""L1 distance of a completed image from the original, inside the holes and outside (Liu, 1804.07723, equation 1).

As in the paper, both are divided by the number of all values of the batch, so an image without a hole adds nothing to
the first. Images are in [-1, 1], distances on the [0, 1] scale.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class InpaintingDistances(NamedTuple):
    """Absolute differences inside the holes and outside, each averaged over all values of the batch."""

    hole: Float[Tensor, ""]
    valid: Float[Tensor, ""]


def inpainting_distances(
    generated: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"], holes: Bool[Tensor, "B 1 H W"]
) -> InpaintingDistances:
    """Returns the distances of `generated` from the original `images`."""
    difference = (generated.float() - images.float()).abs() / 2
    return InpaintingDistances((difference * holes).mean(), (difference * ~holes).mean())
