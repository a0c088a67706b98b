"""Nearest-neighbor quantizer with factorized, l2-normalized codes (ViT-VQGAN, arXiv 2110.04627, section 3.2).

The look-up space is small (`code_dim`); the networks project into and out of it. With `l2_normalize` both latents
and codes lie on the unit sphere, so the nearest code is the one with the largest cosine. Without it, and with a
`code_dim` as wide as the latents, this is the plain quantizer of VQ-VAE (arXiv 1711.00937). Departure from the papers:
the losses are means over all elements, not sums over `code_dim` (the working public codes do the same).
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config
from vqgan.quantizers.quantizer import LookUp, Quantized, Quantizer, straight_through
from vqgan.quantizers.search import nearest_codes


class CodebookConfig(Config, fixed=("codebook_size", "code_dim", "l2_normalize"), may_change=("commitment_weight",)):
    """Base config of learned codebooks with nearest-neighbor look-up."""

    has_codebook: ClassVar[bool] = True

    codebook_size: int = Field(8192, gt=1)
    """Number of codes."""
    code_dim: int = Field(32, gt=0)
    """Width of the look-up space."""
    l2_normalize: bool = True
    """Compare directions only: latents and codes on the unit sphere."""
    commitment_weight: float = Field(0.25, ge=0)
    """Weight of the term that pulls latents to their codes."""


class NearestConfig(CodebookConfig, fixed=("kind",)):
    """Nearest code of a learned codebook."""

    kind: Literal["nearest"] = "nearest"
    """Nearest neighbor; the codebook learns by gradient."""


class NearestQuantizer(Quantizer):
    """Replaces each latent by its nearest code."""

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.latent_dim = self.code_dim = config.code_dim
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))

    def normalize(self, latents: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Returns latents in fp32 as the look-up compares them: on the unit sphere with `l2_normalize`, else
        unchanged."""
        latents = latents.float()
        return F.normalize(latents, dim=-1) if self.config.l2_normalize else latents

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        # fp32 whatever the autocast, which lowers none of this; the search for codes guards itself.
        latents = self.normalize(latents)
        codebook = self.normalize(self.codebook)
        codes = _look_up(latents, codebook)
        chosen = F.embedding(codes, codebook)
        codebook_loss = F.mse_loss(chosen, latents.detach())
        commitment_loss = F.mse_loss(latents, chosen.detach())
        return Quantized(
            latents=straight_through(chosen, latents),
            codes=codes,
            loss=codebook_loss + self.config.commitment_weight * commitment_loss,
            stats={"quantization_error": commitment_loss.detach()},
        )

    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        return _look_up(self.normalize(latents), self.normalize(self.codebook))

    def embed(self, codes: Int64[Tensor, "*rest"]) -> Float[Tensor, "*rest D"]:
        # The whole book is normalized first, as in `forward`: the same arithmetic gives the same bits.
        return F.embedding(codes, self.normalize(self.codebook))

    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.normalize(latents)

    def look_ups(self, latents: Float[Tensor, "B N D"], codes: Int64[Tensor, "B N"] | None) -> list[LookUp]:
        return [LookUp(self, latents.flatten(0, 1), None if codes is None else codes.flatten())]

    @torch.no_grad()
    def place(self, indices: Int64[Tensor, "K"], vectors: Float[Tensor, "K D"]) -> None:
        """Replaces codes outside of gradient training; `vectors` are normalized as by `normalize`."""
        self.codebook[indices] = vectors


def _look_up(latents: Float[Tensor, "B N D"], codebook: Float[Tensor, "V D"]) -> Int64[Tensor, "B N"]:
    return nearest_codes(latents.flatten(0, 1), codebook).view(latents.shape[:2])
