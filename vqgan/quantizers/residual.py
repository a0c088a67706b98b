"""Residual quantizer: a latent is the sum of several codes, each one correcting those before (RQ-VAE, 2203.01941).

Level d replaces what levels 1 to d-1 left over by its nearest code (section 3.1.2), so that V codes in `depth` levels
stand for V^depth points. The commitment term compares the latent with each partial sum (section 3.1.3). Departures: the
mean over levels and elements, not the sum; codebooks learn by gradient, each code towards the residuals that chose it
(the paper moves them by running means, whose target is the same).

Codes are not l2-normalized: what is left over becomes shorter with each level, and a code's length has to say so.

Letters: Q levels, M = N * Q codes.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config
from vqgan.quantizers.nearest import NearestConfig, NearestQuantizer
from vqgan.quantizers.quantizer import LookUp, Quantized, Quantizer, straight_through


class ResidualConfig(
    Config, fixed=("kind", "codebook_size", "code_dim", "depth", "shared"), may_change=("commitment_weight",)
):
    """Sums of codes. The defaults are the paper's."""

    has_codebook: ClassVar[bool] = True

    kind: Literal["residual"] = "residual"
    """Several codes per latent, each the nearest one to the residual of the previous codes."""
    codebook_size: int = Field(16384, gt=1)
    """Number of codes of each level."""
    code_dim: int = Field(256, gt=0)
    """Width of the look-up space."""
    depth: int = Field(4, gt=0)
    """Codes to a latent."""
    shared: bool = True
    """One codebook for all levels, else each level its own."""
    commitment_weight: float = Field(0.25, ge=0)
    """Weight of the term that pulls latents to the partial sums of their codes."""


class ResidualQuantizer(Quantizer):
    """Replaces each latent by the sum of `depth` codes; a latent's codes stand side by side."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.latent_dim = self.code_dim = config.code_dim
        self.codes_per_latent = config.depth
        level = NearestConfig(codebook_size=config.codebook_size, code_dim=config.code_dim, l2_normalize=False)
        self.books = nn.ModuleList(NearestQuantizer(level) for _ in range(1 if config.shared else config.depth))

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        # fp32 whatever the autocast, which lowers none of this; the search for codes guards itself.
        latents = latents.float()
        residual = latents.detach()
        so_far = torch.zeros_like(residual)
        codes, codebook_losses, commitment_losses = [], [], []
        for book in self._levels():
            codes.append(book.encode(residual))
            chosen = book.embed(codes[-1])
            codebook_losses.append(F.mse_loss(chosen, residual))
            so_far = so_far + chosen.detach()
            residual = residual - chosen.detach()
            commitment_losses.append(F.mse_loss(latents, so_far))
        commitment_loss = torch.stack(commitment_losses).mean()
        return Quantized(
            latents=straight_through(so_far, latents),
            codes=torch.stack(codes, dim=-1).flatten(1),
            loss=torch.stack(codebook_losses).mean() + self.config.commitment_weight * commitment_loss,
            stats={"quantization_error": commitment_losses[-1].detach()},
        )

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B M"]:
        residual = latents.float()
        codes = []
        for book in self._levels():
            codes.append(book.encode(residual))
            residual = residual - book.embed(codes[-1])
        return torch.stack(codes, dim=-1).flatten(1)

    def embed(self, codes: Int64[Tensor, "B M"]) -> Float[Tensor, "B N D"]:
        levels = self._by_level(codes)
        so_far = torch.zeros(*levels[0].shape, self.code_dim, device=codes.device)
        for book, level in zip(self._levels(), levels, strict=True):
            so_far = so_far + book.embed(level)
        return so_far

    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return latents.float()

    @torch.no_grad()
    def look_ups(self, latents: Float[Tensor, "B N D"], codes: Int64[Tensor, "B M"] | None) -> list[LookUp]:
        """One look-up a codebook: that of shared levels was asked about the residuals of all of them."""
        residual = latents.float().flatten(0, 1)
        levels = self._levels()
        if codes is None:
            return [LookUp(levels[0], residual, None)] + [
                LookUp(book, residual[:0], None) for book in levels[1 : len(self.books)]
            ]
        residuals, chosen = [], [level.flatten() for level in self._by_level(codes)]
        for book, level in zip(levels, chosen, strict=True):
            residuals.append(residual)
            residual = residual - book.embed(level)
        if self.config.shared:
            return [LookUp(levels[0], torch.cat(residuals), torch.cat(chosen))]
        return [LookUp(*asked) for asked in zip(levels, residuals, chosen, strict=True)]

    def _levels(self) -> list[NearestQuantizer]:
        """Returns the codebook of each level."""
        books = [book for book in self.books if isinstance(book, NearestQuantizer)]
        return books * self.config.depth if self.config.shared else books

    def _by_level(self, codes: Int64[Tensor, "B M"]) -> tuple[Int64[Tensor, "B N"], ...]:
        if codes.shape[1] % self.codes_per_latent:
            raise ValueError(
                f"{codes.shape[1]} codes are not whole latents of {self.codes_per_latent} codes each; "
                "give an image's codes latent by latent, as encode does"
            )
        return rearrange(codes, "B (N Q) -> B N Q", Q=self.codes_per_latent).unbind(-1)
