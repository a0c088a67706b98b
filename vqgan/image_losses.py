"""Reconstruction losses of generated images: weighted l1, l2 and perceptual distances (papers.md
A.3).

For every network whose output is an image with a target. The adversarial term is in:
`vqgan.discriminator_trainer`.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config
from vqgan.discriminator_trainer import leading_fraction
from vqgan.fingerprints import FrozenPart
from vqgan.losses.perceptual import PerceptualConfig, PerceptualLoss
from vqgan.losses.reconstruction import l1, l2
from vqgan.training.optim.precision import Precision, autocast


class PerceptualTermConfig(PerceptualConfig, may_change=("weight", "batch_fraction")):
    """The perceptual loss (LPIPS) and its weight."""

    weight: float = Field(0.1, ge=0)
    """Weight; 0 leaves the network out."""
    batch_fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of each batch that the network sees: less is cheaper."""


class ImageLossesConfig(Config, may_change=("l1_weight", "l2_weight")):
    """Weights of the distances; ViT-VQGAN's, and Parti's for super-resolution."""

    l1_weight: float = Field(0.0, ge=0)
    """Weight of the mean absolute error, images in [0, 1]."""
    l2_weight: float = Field(1.0, ge=0)
    """Weight of the mean squared error, images in [0, 1]."""
    perceptual: PerceptualTermConfig = PerceptualTermConfig()
    """The perceptual term."""


class ImageLosses:
    """The distances that have a weight; `precision` is that of the perceptual network's passes."""

    def __init__(self, config: ImageLossesConfig, device: torch.device, precision: Precision) -> None:
        self.config = config
        self._device = device
        self._precision = precision
        self.perceptual: PerceptualLoss | None = None
        if config.perceptual.weight:
            perceptual = PerceptualLoss(config.perceptual).to(device)
            self.perceptual = perceptual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def frozen_parts(self, key: str) -> dict[str, FrozenPart]:
        """Returns the perceptual network, if there is one; `key` is that of these losses in the run's config."""
        return {} if self.perceptual is None else {f"{key}.perceptual": FrozenPart.of(self.perceptual)}

    def __call__(
        self, generated: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns the weighted terms by name (l1, l2, perceptual), of images in [-1, 1]."""
        config = self.config
        terms = {}
        if config.l1_weight:
            terms["l1"] = config.l1_weight * l1(generated, target)
        if config.l2_weight:
            terms["l2"] = config.l2_weight * l2(generated, target)
        if self.perceptual is not None:
            share = config.perceptual.batch_fraction
            with autocast(self._device, self._precision):
                distance = self.perceptual(leading_fraction(share, generated), leading_fraction(share, target))
            terms["perceptual"] = config.perceptual.weight * distance
        return terms
