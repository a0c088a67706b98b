"""Codebook maintenance against collapse: k-means initialization, and restart of unused codes.

A codebook initialized with noise on the sphere collapses: a few codes near the first latents win everything, the rest
never receive a gradient. Here the networks first train without quantization, k-means then initializes the codes from
the latents, and unused codes are moved onto recent latents that are far from their code.

Recent latents are stored, and the quantizer's `look_ups` gives the vectors that each of its codebooks quantizes for
them: for residual levels these are the current residuals of the previous levels.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from vqgan.config.schedule import Span, in_steps
from vqgan.config.schema import Config
from vqgan.quantizers.kmeans import kmeans
from vqgan.quantizers.nearest import NearestQuantizer
from vqgan.quantizers.quantizer import Quantizer
from vqgan.system.collectives import broadcast_from_rank_zero


class CodebookMaintenanceConfig(
    Config,
    fixed=("memory",),
    may_change=("unquantized", "kmeans_iterations", "restart_every", "restart_until", "dead_after"),
):
    """When a learned codebook is initialized, and when its unused codes are restarted."""

    unquantized: Span = 0
    """Length of the first phase, in steps or as a share of the run such as 25%, that trains without quantization;
    k-means then initializes the codebook. 0: no such phase."""
    kmeans_iterations: int = Field(10, ge=0)
    """Lloyd iterations of that initialization."""
    restart_every: int = Field(0, ge=0)
    """Steps between restarts of unused codes on recent latents; 0 never."""
    restart_until: Span = "80%"
    """Step, or share of the run, after which codes are no longer restarted."""
    memory: int = Field(16384, gt=0)
    """Number of recent latents that are stored for both."""
    dead_after: int = Field(200, gt=0)
    """Steps without a hit after which a code is reported as dead."""


class CodebookMaintenance:
    """Tracks latents and codes during training, and restarts codes; a stateful part of the training task.

    In each step, `step` comes before training and `update` after it, with the latents and codes of all processes:
    every process then makes the same decisions. A quantizer without a learned codebook is only tracked.
    """

    def __init__(self, config: CodebookMaintenanceConfig, quantizer: Quantizer, seed: int) -> None:
        self.config = config
        self.quantizer = quantizer
        self._seed = seed
        self._step = 0
        self._seen = 0
        books = codebooks(quantizer)
        device = books[0].codebook.device if books else next(quantizer.buffers(), torch.empty(0)).device
        memory = config.memory if books else 0
        self._recent = torch.zeros(memory, quantizer.latent_dim, device=device)
        self._filled = torch.zeros(memory, dtype=torch.bool, device=device)
        # The last step at which each code was hit, for each codebook.
        self._last_hit = [torch.full((quantizer.codebook_size,), -1, device=device) for _ in range(max(1, len(books)))]

    def in_warmup(self, step: int, steps: int) -> bool:
        """Returns whether this step trains without quantization."""
        return step < in_steps(self.config.unquantized, steps)

    @torch.no_grad()
    def update(self, latents: Float[Tensor, "B N D"], codes: Int64[Tensor, "B M"] | None) -> None:
        """Stores a batch's latents and the codes that they hit. Non-finite latents are skipped."""
        # No device synchronization here: no mask as an index, no `bincount`.
        rows = latents.float().flatten(0, 1)
        if codes is not None:
            asked = [(look_up.latents, look_up.codes) for look_up in self.quantizer.look_ups(latents, codes)]
            for last_hit, (vectors, hit) in zip(self._last_hit, asked or [(rows, codes.flatten())], strict=True):
                assert hit is not None
                when = torch.where(_are_finite(vectors), self._step, -1)
                last_hit.scatter_reduce_(0, hit, when, "amax")
        size = len(self._recent)
        if size == 0:
            return
        rows = rows[-size:]
        slots = (torch.arange(len(rows), device=rows.device) + self._seen) % size
        finite = _are_finite(rows)
        self._recent[slots] = torch.where(finite[:, None], rows, self._recent[slots])
        self._filled[slots] = self._filled[slots] | finite
        self._seen += len(rows)

    @torch.no_grad()
    def step(self, step: int, steps: int, averaged: Quantizer) -> int:
        """Initializes or restarts the codes that are due before this step; returns how many (usually none).

        `averaged` is the EMA copy of the quantizer, whose codes are replaced too.
        """
        config = self.config
        self._step = step
        if len(self._recent) == 0 or self.in_warmup(step, steps):
            return 0
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        if step > 0 and self.in_warmup(step - 1, steps):
            return self._start(averaged, generator)
        due = config.restart_every and step and step % config.restart_every == 0
        if due and step <= in_steps(config.restart_until, steps):
            return self._restart_dead_codes(averaged, generator)
        return 0

    def dead_codes(self) -> Float[Tensor, ""]:
        """Returns the share of the codes of all codebooks without a hit for `dead_after` steps.

        In the first `dead_after` steps of the run or of quantization: the share of the codes without a hit so far.
        """
        last_hit = torch.cat(self._last_hit)
        return (last_hit < max(0, self._step - self.config.dead_after + 1)).float().mean()

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent, "filled": self._filled, "seen": self._seen, "last_hit": self._last_hit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state. Raises ValueError if memory or codebooks have other sizes, KeyError for a missing
        entry."""
        pairs = [(self._recent, state["recent"]), (self._filled, state["filled"])]
        pairs += list(zip(self._last_hit, state["last_hit"], strict=True))
        for own, saved in pairs:
            if own.shape != saved.shape:
                raise ValueError(
                    f"the codebook's care holds a tensor of shape {tuple(own.shape)}, the checkpoint one of "
                    f"{tuple(saved.shape)}; resume with the same task.codebook_maintenance.memory and model.quantizer"
                )
        for own, saved in pairs:
            own.copy_(saved)
        self._seen = int(state["seen"])

    def _start(self, averaged: Quantizer, generator: torch.Generator) -> int:
        """Initializes all codes by k-means: the first codebook on the latents, each further one on the residuals."""
        books = codebooks(self.quantizer)
        # Shared levels take as many rounds: each round clusters the residuals of the previous one.
        for level in range(self.quantizer.codes_per_latent):
            index = min(level, len(books) - 1)
            vectors, _ = self._asked(index, generator)
            if len(vectors) == 0:
                return 0
            centers = kmeans(vectors, self.quantizer.codebook_size, self.config.kmeans_iterations, generator)
            self._place(index, torch.arange(len(centers), device=centers.device), centers, averaged)
            self._last_hit[index].fill_(self._step)
        return len(books) * self.quantizer.codebook_size

    def _restart_dead_codes(self, averaged: Quantizer, generator: torch.Generator) -> int:
        """Moves the codes without a hit since the last restart onto latents that are far from their code."""
        moved = 0
        for index, last_hit in enumerate(self._last_hit):
            dead = (last_hit < self._step - self.config.restart_every).nonzero().flatten()
            if len(dead) == 0:
                continue
            vectors, distances = self._asked(index, generator)
            dead = dead[: len(vectors)]
            if len(dead) == 0:
                continue
            # Latents far from their code are sampled first: another code helps most there.
            # Ignore the distance to a non-finite code: the NaN guard will find it and roll back.
            distances = distances.nan_to_num(0.0, 0.0, 0.0) + 1e-12
            chosen = torch.multinomial(distances.cpu(), len(dead), generator=generator)
            self._place(index, dead, vectors[chosen.to(dead.device)], averaged)
            moved += len(dead)
        return moved

    def _asked(self, index: int, generator: torch.Generator) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K"]]:
        """Returns what a codebook is asked about the remembered latents, as it compares them, and how far its answers
        are."""
        latents = self._recent[self._filled][None]
        look_up = self.quantizer.look_ups(latents, self.quantizer.encode(latents))[index]
        assert look_up.codes is not None
        vectors, codes = look_up.latents, look_up.codes
        if len(vectors) > len(self._recent):  # shared levels have several per latent
            some = torch.randperm(len(vectors), generator=generator)[: len(self._recent)].to(vectors.device)
            vectors, codes = vectors[some], codes[some]
        vectors = look_up.quantizer.normalize(vectors)
        return vectors, (vectors - look_up.quantizer.embed(codes)).square().sum(-1)

    def _place(self, index: int, codes: Int64[Tensor, "K"], vectors: Float[Tensor, "K D"], averaged: Quantizer) -> None:
        vectors = broadcast_from_rank_zero(vectors)
        for quantizer in (self.quantizer, averaged):
            codebooks(quantizer)[index].place(codes, vectors)


def codebooks(quantizer: Quantizer) -> list[NearestQuantizer]:
    """Returns the learned codebooks of a quantizer."""
    return [look_up.quantizer for look_up in quantizer.look_ups(torch.zeros(1, 1, quantizer.latent_dim), None)]


def _are_finite(rows: Float[Tensor, "K D"]) -> Bool[Tensor, "K"]:
    return rows.isfinite().all(-1)
