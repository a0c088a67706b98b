"""Distances between a reconstruction and its image (ViT-VQGAN, 2110.04627, section 3.3; DALL-E, 2102.12092, A.3).

Images are in [-1, 1], but distances are taken on the [0, 1] scale: the paper's loss weights and printed metrics
(l2 3.34e-3 for Small) assume it. Means run over every element. All of it is fp32: inputs are cast up, and autocast
never lowers element-wise operations on fp32 tensors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vqgan.layers.logit_laplace import shrink_pixels

LOG_SCALE_RANGE = (-6.0, 3.0)
"""Bounds of ln b in `logit_laplace`; below, one exactly hit pixel could drive the likelihood to infinity."""


def l1(reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Returns the mean absolute difference, on the [0, 1] scale, of two batches in [-1, 1]."""
    return (reconstruction.float() - images.float()).abs().mean() / 2


def l2(reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Returns the mean squared difference, on the [0, 1] scale, of two batches in [-1, 1]."""
    return (reconstruction.float() - images.float()).square().mean() / 4


def logit_laplace(
    mean: Float[Tensor, "B 3 H W"], log_scale: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, ""]:
    """Returns the mean negative log-likelihood (nats an element) of images in [-1, 1] under the logit-Laplace
    distribution.

    -ln f(x | mu, b) = ln(2 b x (1 - x)) + |logit(x) - mu| / b, of x in [0.1, 0.9] (DALL-E A.3). `mean` is mu and
    `log_scale` is ln b, clamped to `LOG_SCALE_RANGE` (outside of it ln b gets no gradient). Trained values are about
    -2.4 to -2.6 (ViT-VQGAN table 4).
    """
    x = shrink_pixels(images.float())
    log_b = log_scale.float().clamp(*LOG_SCALE_RANGE)
    distance = (torch.logit(x) - mean.float()).abs()
    return (math.log(2) + log_b + torch.log(x * (1 - x)) + distance * torch.exp(-log_b)).mean()
