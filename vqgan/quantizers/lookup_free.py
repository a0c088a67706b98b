"""Look-up-free quantization: a code is the signs of its latent's dimensions (MAGVIT-v2, arXiv 2310.05737, section 3.1).

Codes are the corners {-1, 1}^bits of a cube, so that nothing is learned and nothing searched. What keeps the codes in
use is the entropy term (equation 5): each latent should be sure of its code (small mean entropy), all latents together
should use all codes (large entropy of the mean distribution). The distribution of a latent z over the codes c is
softmax(-|z - c|^2 / temperature), which is a product over bits: bit i is 1 with probability sigmoid(4 z_i /
temperature). Both entropies are therefore exact at any number of bits:

- a latent's entropy is the sum of its bits' entropies;
- the mean distribution over the 2^bits codes is one matrix product: with the bits in two halves, the mean over latents
  of p(first half) p(second half). It holds 2^bits numbers, never (latents x 2^bits).

In training the mean is over the latents of all processes; each micro-batch has its own, so that with several of them
fewer latents are asked to use all codes. Departure: the commitment term is a mean over bits, as in `nearest`.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config
from vqgan.quantizers.quantizer import Quantized, Quantizer, straight_through
from vqgan.system.collectives import all_reduce_mean


class LookupFreeConfig(
    Config, fixed=("kind", "bits"), may_change=("entropy_weight", "diversity", "temperature", "commitment_weight")
):
    """The signs of a few dimensions."""

    has_codebook: ClassVar[bool] = False

    kind: Literal["lookup_free"] = "lookup_free"
    """Every dimension gives one bit, its sign; no codebook is learned."""
    bits: int = Field(13, gt=0, le=24)
    """Bits of a code, and width of a latent: 2^bits codes (8192; the paper goes up to 18 bits)."""
    entropy_weight: float = Field(0.1, ge=0)
    """Weight of the entropy term."""
    diversity: float = Field(1.0, ge=0)
    """Weight, within the entropy term, of using all codes against being sure of each."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the distribution over codes, in squared distances; a corner is 4 away from its neighbors."""
    commitment_weight: float = Field(0.25, ge=0)
    """Weight of the term that pulls latents to their codes."""


class LookupFreeQuantizer(Quantizer):
    """Replaces each latent by the corner of the cube that has its signs."""

    powers: Int64[Tensor, "D"]

    def __init__(self, config: LookupFreeConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = 2**config.bits
        self.latent_dim = self.code_dim = config.bits
        self.register_buffer("powers", 2 ** torch.arange(config.bits), persistent=False)

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.encode(latents)
            chosen = self.embed(codes)
            logits = latents.flatten(0, 1) * (4 / self.config.temperature)
            certainty, variety = mean_entropy(logits), entropy_of_mean(logits, self.training)
            commitment_loss = F.mse_loss(latents, chosen)
            entropy_loss = certainty - self.config.diversity * variety
            return Quantized(
                latents=straight_through(chosen, latents),
                codes=codes,
                loss=self.config.entropy_weight * entropy_loss + self.config.commitment_weight * commitment_loss,
                stats={
                    "quantization_error": commitment_loss.detach(),
                    "latent_entropy": certainty.detach(),
                    "code_entropy": variety.detach(),
                },
            )

    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        return ((latents > 0) * self.powers).sum(-1)

    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        return (codes[..., None] // self.powers % 2).float() * 2 - 1

    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return latents.float()


def mean_entropy(logits: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """Returns the mean over latents of the entropy of D independent bits with these logits, in nats (equation 5, first
    term)."""
    # Of one bit: ln(1 + e^l) - l sigmoid(l).
    return (F.softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()


def entropy_of_mean(logits: Float[Tensor, "M D"], together: bool = False) -> Float[Tensor, ""]:
    """Returns the entropy of the mean over latents of their distributions over 2^D codes, in nats (equation 5, second
    term).

    `together`: over the latents of all processes, as many on each; the mean of its gradients is that of one process
    with all of them.
    """
    half = logits.shape[1] // 2
    mean = _over_patterns(logits[:, :half]).T @ _over_patterns(logits[:, half:]) / len(logits)
    if together:
        mean = all_reduce_mean(mean)
    # Clamped in the logarithm: 0 ln 0 is 0, but its gradient would not be a number.
    return -(mean * mean.clamp(min=1e-30).log()).sum()


def _over_patterns(logits: Float[Tensor, "M d"]) -> Float[Tensor, "M patterns"]:
    """Returns the probability of every pattern of d independent bits."""
    patterns = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(-1):
        both = torch.stack([(-bit).sigmoid(), bit.sigmoid()], dim=-1)
        patterns = (both[:, :, None] * patterns[:, None, :]).flatten(1)
    return patterns
