"""Noise by which two images of one caption differ: a small map that is added at the deepest row.

papers.md E.5: z ~ N(0, 1) of 32 x 2 x 2 goes through two 3x3 convolutions to the row's own shape and is added to it.
(The diagram gives both as 2x2x512: a sum keeps the row's width, concatenation would double it.)

Legend: B images, Z channels of the noise, C of the row, h w the row's grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from parti.fused.fusion import group_norm
from vqgan.config.schema import Config


class NoiseConfig(Config, fixed=("channels", "hidden_channels")):
    """The noise and its branch; the defaults are those of the diagram."""

    channels: int = Field(32, gt=0)
    """Channels of the noise; its sides are those of the deepest row."""
    hidden_channels: int = Field(128, gt=0)
    """Channels between the two convolutions."""


class NoiseBranch(nn.Module):
    """Maps noise to the shape of the row: 3x3, GroupNorm, SiLU, 3x3."""

    def __init__(self, config: NoiseConfig, row_channels: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(config.channels, config.hidden_channels, 3, padding=1),
            group_norm(config.hidden_channels),
            nn.SiLU(),
            nn.Conv2d(config.hidden_channels, row_channels, 3, padding=1),
        )

    def forward(self, noise: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C h w"]:
        return self.network(noise)


def seeded_noise(keys: Sequence[tuple[int, ...]], shape: tuple[int, int, int]) -> Float[Tensor, "B Z h w"]:
    """Returns one N(0, 1) map for each key; it depends on the key alone, not on device or batch."""
    maps = [np.random.default_rng(key).standard_normal(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(maps))
