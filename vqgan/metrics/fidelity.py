"""How close a reconstruction is to its original, pixel by pixel (PSNR) and window by window (SSIM)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vqgan.metrics.protocol import Metric, Reconstructions, package


def psnr(reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Returns the peak signal-to-noise ratio of each image in dB, after rounding both to 256 levels; 100 for equal
    ones.

    Inputs in [-1, 1]; data range 255 (papers.md H).
    """
    difference = _levels(reconstruction) - _levels(images)
    error = difference.square().mean(dim=(1, 2, 3))
    return (20 * torch.log10(255 / error.sqrt().clamp(min=1e-9))).clamp(max=100.0)


def ssim(reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Returns the structural similarity of each image after rounding both to 256 levels, at most 1; 6 x 6 pixels at
    least.

    Inputs in [-1, 1]; data range 255, Gaussian window of 11 x 11 with sigma 1.5, each color channel by itself, mean
    over all windows (papers.md H; Wang et al. 2004). Borders are reflected, as torchmetrics does.
    """
    from torchmetrics.functional.image.ssim import structural_similarity_index_measure

    image_list = (_levels(reconstruction), _levels(images))
    values = structural_similarity_index_measure(*image_list, sigma=1.5, data_range=255.0, reduction="none")
    assert isinstance(values, Tensor)  # a tuple only where its parts are asked for
    return values


def to_uint8(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Returns images in [-1, 1] rounded to the nearest of 256 levels, as a PNG file would hold them."""
    return _levels(images).to(torch.uint8)


def to_float(levels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Returns the inverse of `to_uint8`: images in [-1, 1] that lie on one of 256 levels."""
    return levels.float().div(127.5).sub(1)


class FidelityMeter:
    """Means of the images' PSNR and SSIM."""

    def __init__(self) -> None:
        self._psnr: list[Tensor] = []
        self._ssim: list[Tensor] = []

    def add(self, batch: Reconstructions) -> None:
        """One value an image."""
        self._psnr.append(psnr(batch.reconstructions, batch.originals).double().cpu())
        self._ssim.append(ssim(batch.reconstructions, batch.originals).double().cpu())

    def metrics(self) -> Iterator[Metric]:
        yield Metric(
            "psnr",
            torch.cat(self._psnr).mean().item(),
            "dB",
            "mean of the images' PSNR, 10 log10(255^2 / MSE over pixels and channels); equal images count 100 dB",
            {"evaluator": "vqgan.metrics.fidelity.psnr", "data_range": 255},
        )
        yield Metric(
            "ssim",
            torch.cat(self._ssim).mean().item(),
            "",
            "mean of the images' SSIM, Gaussian window 11x11 sigma 1.5, each RGB channel by itself",
            {"evaluator": package("torchmetrics"), "data_range": 255, "k1": 0.01, "k2": 0.03, "borders": "reflected"},
        )


def _levels(images: Tensor) -> Tensor:
    return images.float().clamp(-1, 1).add(1).mul(127.5).round()
