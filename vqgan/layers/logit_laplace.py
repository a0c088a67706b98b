"""Pixel maps of the logit-Laplace likelihood (DALL-E, 2102.12092, appendix A.3).

The distribution lives on the open interval (0, 1), where a black or white pixel has no finite logit, so pixels are
first shrunk to (0.1, 0.9). Both the networks (which emit the logit's mean) and the loss need these maps.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_MARGIN = 0.1
"""The paper's epsilon: distance that is kept from 0 and from 1."""


def shrink_pixels(images: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns images in [-1, 1] to [0.1, 0.9]: the paper's phi(x) = 0.8 x + 0.1 of x in [0, 1]."""
    return (1 - 2 * _MARGIN) * (images + 1) / 2 + _MARGIN


def expand_pixels(shrunk: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns the inverse of `shrink_pixels`: [0.1, 0.9] to images in [-1, 1]."""
    return 2 * (shrunk - _MARGIN) / (1 - 2 * _MARGIN) - 1


def logit_laplace_mean(mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns the image that a decoder's logit mean stands for: (sigmoid(mean) - 0.1) / 0.8, brought to [-1, 1].

    Not clamped: values reach [-1.25, 1.25], so that in training the l2 loss has a gradient everywhere. Whoever shows
    or stores the image clamps it to [-1, 1], as DALL-E does.
    """
    return expand_pixels(torch.sigmoid(mean))
