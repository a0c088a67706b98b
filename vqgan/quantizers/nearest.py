"""Nearest-neighbour quantiser with factorised, l2-normalised codes (ViT-VQGAN, arXiv 2110.04627, section 3.2).

The look-up space is small (`code_dim`); the networks project into and out of it. With `l2_normalize` both latents
and codes lie on the unit sphere, so the nearest code is the one with the largest cosine. Departure from the paper:
the losses are means over all elements, not sums over `code_dim` (the working public codes do the same).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from vqgan.config import Config
from vqgan.quantizers.quantized import Quantized

_TILE_ELEMENTS = 1 << 22
"""Largest number of (vector, code) similarities held at once: 16 MiB of fp32."""
_TILE_CODES = 8192
"""Codes in one tile."""


class NearestConfig(Config):
    """Nearest code of a learned codebook."""

    kind: Literal["nearest"] = "nearest"
    """Nearest neighbour; the codebook learns by gradient."""
    codebook_size: int = Field(8192, gt=1)
    """Number of codes."""
    code_dim: int = Field(32, gt=0)
    """Width of the look-up space."""
    l2_normalize: bool = True
    """Compare directions only: latents and codes on the unit sphere."""
    commitment_weight: float = Field(0.25, ge=0)
    """Weight of the term that pulls latents to their codes."""


class NearestQuantizer(nn.Module):
    """Replaces each latent by its nearest code."""

    def __init__(self, config: NearestConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))

    def normalize(self, latents: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Latents in fp32 as the look-up compares them: on the unit sphere with `l2_normalize`, else unchanged."""
        latents = latents.float()
        return F.normalize(latents, dim=-1) if self.config.l2_normalize else latents

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        # fp32 whatever the autocast: rounding in bf16 changes which code is nearest.
        with torch.autocast(latents.device.type, enabled=False):
            latents = self.normalize(latents)
            codebook = self.normalize(self.codebook)
            codes = nearest_codes(latents.detach().flatten(0, 1), codebook.detach()).view(latents.shape[:2])
            chosen = F.embedding(codes, codebook)
            codebook_loss = F.mse_loss(chosen, latents.detach())
            commitment_loss = F.mse_loss(latents, chosen.detach())
            return Quantized(
                # Exactly the chosen code (the bracket is zero), with the gradient of the latents.
                latents=chosen.detach() + (latents - latents.detach()),
                codes=codes,
                loss=codebook_loss + self.config.commitment_weight * commitment_loss,
                stats={"quantization_error": commitment_loss.detach()},
            )

    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        """Codes alone, without losses."""
        with torch.autocast(latents.device.type, enabled=False):
            return nearest_codes(self.normalize(latents).flatten(0, 1), self.normalize(self.codebook)).view(
                latents.shape[:2]
            )

    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """The latents that the decoder reads for these codes."""
        return self.normalize(F.embedding(codes, self.codebook))


def nearest_codes(vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "V D"]) -> Int64[Tensor, "M"]:
    """Index of the closest code (Euclidean) to each vector; the lowest index wins a tie.

    Searches tile by tile, so memory stays bounded whatever M * V is.
    """
    # |v - c|^2 = |v|^2 - 2 (v.c - |c|^2 / 2): the vector's own norm does not matter.
    half_norms = codebook.square().sum(-1) / 2
    code_tile = min(len(codebook), _TILE_CODES)
    vector_tile = max(1, _TILE_ELEMENTS // code_tile)
    # Zeros: a latent that is not a number is close to nothing, and still needs a code that exists.
    codes = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    for start in range(0, len(vectors), vector_tile):
        tile = vectors[start : start + vector_tile]
        best = tile.new_full((len(tile),), float("-inf"))
        for first_code in range(0, len(codebook), code_tile):
            part = slice(first_code, first_code + code_tile)
            score, index = torch.addmm(-half_norms[None, part], tile, codebook[part].T).max(-1)
            better = score > best
            best = torch.where(better, score, best)
            # No indexing by a mask: on a GPU it would wait for the device.
            found = codes[start : start + vector_tile]
            torch.where(better, index + first_code, found, out=found)
    return codes
