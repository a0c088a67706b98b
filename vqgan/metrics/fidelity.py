"""How close a reconstruction is to its original."""

import torch
from jaxtyping import Float
from torch import Tensor


def psnr(reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio of each picture in dB, after rounding both to 256 levels; 100 for equal ones.

    Inputs in [-1, 1]; data range 255 (SPEC H).
    """
    difference = _levels(reconstruction) - _levels(images)
    error = difference.square().mean(dim=(1, 2, 3))
    return (20 * torch.log10(255 / error.sqrt().clamp(min=1e-9))).clamp(max=100.0)


def _levels(images: Tensor) -> Tensor:
    return images.float().clamp(-1, 1).add(1).mul(127.5).round()
