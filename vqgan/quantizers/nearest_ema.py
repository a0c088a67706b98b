"""Nearest-neighbor quantizer whose codes follow the mean of their latents (VQ-VAE, arXiv 1711.00937, appendix A.1).

The look-up is that of `nearest`. What differs is how the codebook learns: not by gradient, but by running sums over the
latents that chose each code, and running counts of them (equations 6 to 8); a code is its sum over its count. That is
online k-means: it needs no learning rate, and a code cannot lag behind an encoder that moves. With `l2_normalize` the
sums are of latents on the unit sphere, and only a code's direction is read: spherical k-means.

Departures from the paper: counts are smoothed (Laplace, as the authors' public code does), so that a code that nobody
chooses is never divided by zero: it drifts to the origin once its count is near `epsilon`. Sums begin at the first
codes with a count of one. The statistics move at every forward pass in training mode; those within `moving_once` move
them together, at its end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from vqgan.quantizers.nearest import CodebookConfig, NearestQuantizer
from vqgan.quantizers.quantizer import Quantized, straight_through
from vqgan.system.collectives import all_reduce_sum


class NearestEMAConfig(CodebookConfig, fixed=("kind",), may_change=("decay", "epsilon")):
    """Nearest code of a codebook that follows the mean of its latents."""

    kind: Literal["nearest_ema"] = "nearest_ema"
    """Nearest neighbor; each code is the running mean of the latents that chose it."""
    decay: float = Field(0.99, ge=0, lt=1)
    """Decay of the running sums and counts per training step."""
    epsilon: float = Field(1e-5, gt=0)
    """Laplace smoothing of the running counts, in latents."""


class NearestEMAQuantizer(NearestQuantizer):
    """Replaces each latent by its nearest code; the codebook takes no gradient, so no optimizer owns it."""

    sums: Float[Tensor, "V D"]
    counts: Float[Tensor, "V"]

    def __init__(self, config: NearestEMAConfig) -> None:
        super().__init__(config)
        self.decay = config.decay
        self.epsilon = config.epsilon
        self.codebook.requires_grad_(False)
        self.register_buffer("sums", self.normalize(self.codebook).clone())
        self.register_buffer("counts", torch.ones(config.codebook_size))
        self._waiting: list[Tensor] | None = None

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        # fp32 whatever the autocast, which lowers none of this; the search for codes guards itself.
        latents = self.normalize(latents)
        codes = self.encode(latents)
        chosen = self.embed(codes)
        if self.training:
            self._follow(latents.flatten(0, 1), codes.flatten())
        commitment_loss = F.mse_loss(latents, chosen)
        return Quantized(
            latents=straight_through(chosen, latents),
            codes=codes,
            loss=self.config.commitment_weight * commitment_loss,
            stats={"quantization_error": commitment_loss.detach()},
        )

    @contextmanager
    def moving_once(self) -> Iterator[None]:
        self._waiting = []
        try:
            yield
            waiting, self._waiting = self._waiting, None
            if waiting:
                self._move(torch.stack(waiting).sum(0))
        finally:
            self._waiting = None

    def weights_of_codes(self) -> dict[str, Tensor]:
        """Returns the codebook; running sums and counts are needed for training only."""
        return {"codebook": self.codebook}

    @torch.no_grad()
    def place(self, indices: Int64[Tensor, "K"], vectors: Float[Tensor, "K D"]) -> None:
        """Replaces codes; each gets the count of an average code."""
        super().place(indices, vectors)
        count = self.counts.mean()
        self.sums[indices] = vectors * count
        self.counts[indices] = count

    @torch.no_grad()
    def _follow(self, latents: Float[Tensor, "M D"], codes: Int64[Tensor, "M"]) -> None:
        # A latent that is not a number (a step that training skips) must not stay in the sums for ever.
        finite = latents.isfinite().all(-1, keepdim=True)
        rows = torch.cat([torch.where(finite, latents, 0.0), finite.float()], dim=-1)
        totals = rows.new_zeros(self.codebook_size, rows.shape[1]).index_add_(0, codes, rows)
        if self._waiting is None:
            self._move(totals)
        else:
            self._waiting.append(totals)

    @torch.no_grad()
    def _move(self, totals: Float[Tensor, "V E"]) -> None:
        """Towards the sums, and the counts in the last column, of the latents that chose each code."""
        totals = all_reduce_sum(totals)
        self.sums.lerp_(totals[:, :-1], 1 - self.decay)
        self.counts.lerp_(totals[:, -1], 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
