"""Finite scalar quantization: each dimension rounds to a few levels, and no codebook is learned (arXiv 2309.15505).

Appendix A.1 of the paper, line by line: a dimension is squashed by tanh, shifted by half a step where its number of
levels is even (so that the levels are whole numbers), rounded with a straight-through gradient, and divided by half
the number of levels. A code's number is a mixed-radix one, the first dimension the fastest.
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config
from vqgan.quantizers.quantizer import Quantized, Quantizer, straight_through

_MARGIN = 1e-3
"""The paper's eps: how far, relatively, the outermost latents stay within the outermost levels."""


class FiniteScalarConfig(Config, fixed=("kind", "levels")):
    """Rounding of a few dimensions to a few levels each."""

    has_codebook: ClassVar[bool] = False

    kind: Literal["finite_scalar"] = "finite_scalar"
    """Every dimension rounds to its own few levels; nothing is learned, so nothing collapses."""
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field((8, 8, 8, 6, 5), min_length=1)
    """Levels of each dimension; their product is the number of codes (15,360). The paper advises 5 and more for each:
    (8, 6, 5) for 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 5, 5, 5) for 2^16 (table 1)."""


class FiniteScalarQuantizer(Quantizer):
    """Replaces each latent by the nearest point of a grid."""

    levels: Int64[Tensor, "D"]
    radix: Int64[Tensor, "D"]

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = math.prod(config.levels)
        self.latent_dim = self.code_dim = len(config.levels)
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("radix", levels.cumprod(0) // levels, persistent=False)

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        bounded = self._bound(latents)
        rounded = bounded.detach().round()
        unquantized = bounded / self._half_width
        chosen = rounded / self._half_width
        return Quantized(
            latents=straight_through(chosen, unquantized),
            codes=self._codes(rounded),
            loss=bounded.new_zeros(()),
            stats={"quantization_error": F.mse_loss(unquantized.detach(), chosen)},
        )

    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        return self._codes(self._bound(latents).round())

    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        digits = codes[..., None] // self.radix % self.levels
        return (digits - self._half_width) / self._half_width

    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self._bound(latents) / self._half_width

    @property
    def _half_width(self) -> Int64[Tensor, "D"]:
        return self.levels // 2

    def _bound(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Returns the paper's `bound`: within half a step of its levels, whole numbers from -(L // 2) to (L - 1) // 2.

        The shift is `tan`, as in the paper's listing; the exact inverse of tanh would differ a little. In fp32, which
        autocast leaves alone: all that follows is element by element.
        """
        half = (self.levels - 1) * (1 - _MARGIN) / 2
        offset = (self.levels % 2 == 0) * 0.5
        return (latents.float() + (offset / half).tan()).tanh() * half - offset

    def _codes(self, rounded: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        # A latent that is not a number still needs a code that exists.
        digits = rounded.nan_to_num().long() + self._half_width
        return (digits * self.radix).sum(-1)
