"""Keeps a learned codebook alive: a start from data by k-means, and re-seeding of codes that nobody uses.

A codebook that starts as noise on the sphere collapses: a few codes near the first latents win everything, the rest
never receive a gradient. Here the networks first learn without quantisation, k-means then puts the codes where the
latents are, and unused codes are moved onto recent latents that are poorly served.
"""

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from vqgan.config import Config
from vqgan.quantizers.nearest import NearestQuantizer, nearest_codes


class CodebookCareConfig(Config):
    """When the codebook starts, and when unused codes are moved. Shares are of the whole run."""

    continuous_share: float = Field(0.0, ge=0, lt=1)
    """First share of the run that trains without quantisation; k-means then starts the codebook. 0: no such phase."""
    kmeans_iterations: int = Field(10, ge=0)
    """Lloyd iterations of that start."""
    revive_every: int = Field(0, ge=0)
    """Steps between moving unused codes onto recent latents; 0 never."""
    revive_until_share: float = Field(0.8, ge=0, le=1)
    """Share of the run after which codes are left in peace to settle."""
    memory: int = Field(16384, gt=0)
    """Recent latents that are remembered for both."""


class CodebookCare:
    """Watches latents and codes during training, and re-places codes; a stateful part of the training task."""

    def __init__(self, config: CodebookCareConfig, quantizer: NearestQuantizer, seed: int) -> None:
        self.config = config
        self.quantizer = quantizer
        self._seed = seed
        codebook = quantizer.codebook
        self._recent = torch.zeros(config.memory, codebook.shape[1], device=codebook.device)
        self._seen = 0
        self._hits = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)

    def is_continuous(self, step: int, steps: int) -> bool:
        """Whether this step trains without quantisation."""
        return step < self.config.continuous_share * steps

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, "M D"], codes: Int64[Tensor, "M"] | None) -> None:
        """Remember a batch's latents (of all processes) and which codes they hit."""
        latents = self.quantizer.normalize(latents)[-len(self._recent) :]
        start = self._seen % len(self._recent)
        slots = (torch.arange(len(latents), device=latents.device) + start) % len(self._recent)
        self._recent[slots] = latents
        self._seen += len(latents)
        if codes is not None:
            # Not `bincount`: on a GPU it waits for the device at every step.
            self._hits.index_add_(0, codes, torch.ones_like(codes))

    @torch.no_grad()
    def tend(self, step: int, steps: int) -> Int64[Tensor, "K"]:
        """Place the codes that are due at this step, before it trains; returns their indices (usually none)."""
        config = self.config
        starts_now = not self.is_continuous(step, steps) and step > 0 and self.is_continuous(step - 1, steps)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        codebook = self.quantizer.codebook
        if starts_now:
            codebook.copy_(kmeans(self._remembered(), len(codebook), config.kmeans_iterations, generator))
            self._hits.zero_()
            return torch.arange(len(codebook), device=codebook.device)
        due = config.revive_every and step and step % config.revive_every == 0
        if not due or self.is_continuous(step, steps) or step > config.revive_until_share * steps:
            return codebook.new_zeros(0, dtype=torch.int64)
        dead = (self._hits == 0).nonzero().flatten()
        self._hits.zero_()
        latents = self._remembered()
        if len(dead) == 0 or len(latents) == 0:
            return dead[:0]
        # Latents far from their code are drawn first: that is where another code helps most.
        nearest = self.quantizer.normalize(codebook)[nearest_codes(latents, self.quantizer.normalize(codebook))]
        distances = (latents - nearest).square().sum(-1)
        dead = dead[: len(latents)]
        chosen = torch.multinomial((distances + 1e-12).cpu(), len(dead), generator=generator).to(dead.device)
        codebook[dead] = latents[chosen]
        return dead

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"recent": self._recent, "seen": self._seen, "hits": self._hits}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self._recent.copy_(torch.as_tensor(state["recent"]))
        self._hits.copy_(torch.as_tensor(state["hits"]))
        self._seen = int(state["seen"])

    def _remembered(self) -> Float[Tensor, "M D"]:
        return self._recent[: min(self._seen, len(self._recent))]


def kmeans(
    vectors: Float[Tensor, "M D"], clusters: int, iterations: int, generator: torch.Generator
) -> Float[Tensor, "V D"]:
    """Centres of `clusters` clusters: k-means++ start, then Lloyd iterations; empty clusters keep their centre."""
    first = int(torch.randint(len(vectors), (1,), generator=generator))
    centres = vectors[first].repeat(clusters, 1)
    distances = (vectors - centres[0]).square().sum(-1)
    for index in range(1, clusters):
        weights = (distances + 1e-12).cpu()
        centres[index] = vectors[int(torch.multinomial(weights, 1, generator=generator))]
        distances = torch.minimum(distances, (vectors - centres[index]).square().sum(-1))
    for _ in range(iterations):
        codes = nearest_codes(vectors, centres)
        counts = torch.bincount(codes, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres
