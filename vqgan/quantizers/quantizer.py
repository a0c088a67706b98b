"""Base class of the quantizers: latents to codes and back. A new quantizer subclasses it, see `vqgan.quantizers`.

Letters: B batch, N latents of an image, D width that the quantizer reads (`latent_dim`), E width that it gives to the
decoder (`code_dim`), M codes of an image: N, or N times `codes_per_latent`, a latent's codes side by side.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

if TYPE_CHECKING:
    from vqgan.quantizers.nearest import NearestQuantizer


class Quantized(NamedTuple):
    """A quantizer's result.

    latents: what the decoder reads; gradients pass through to the encoder.
    codes: integers in [0, codebook_size).
    loss: what training adds for this quantizer (codebook, commitment, KL, entropy); 0 where it needs none.
    stats: scalars worth logging.
    """

    latents: Float[Tensor, "B N E"]
    codes: Int64[Tensor, "B M"]
    loss: Float[Tensor, ""]
    stats: dict[str, Tensor]


class LookUp(NamedTuple):
    """One learned codebook with the vectors that it quantized in a batch, and their codes.

    codes: None where the batch was not quantized; `latents` then has no rows for a codebook deeper than the first.
    """

    quantizer: "NearestQuantizer"
    latents: Float[Tensor, "K D"]
    codes: Int64[Tensor, "K"] | None


def straight_through(chosen: Float[Tensor, "*rest D"], latents: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
    """Exactly `chosen` (the bracket is zero), with the gradient of `latents` (VQ-VAE, arXiv 1711.00937, 3.2)."""
    return chosen.detach() + (latents - latents.detach())


class Quantizer(nn.Module, ABC):
    """Distances and look-ups are fp32 whatever the autocast: rounding in bf16 changes which code is nearest."""

    codebook_size: int
    latent_dim: int
    code_dim: int
    codes_per_latent: int = 1

    @abstractmethod
    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        """Quantizes, with losses; random only in training mode."""

    @abstractmethod
    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B M"]:
        """Returns the codes only, without losses; deterministic."""

    @abstractmethod
    def embed(self, codes: Int64[Tensor, "B M"]) -> Float[Tensor, "B N E"]:
        """Returns the latents that the decoder reads for these codes: in evaluation mode exactly those of `forward`."""

    @abstractmethod
    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Returns the unquantized latents in the decoder's space, for training without codes."""

    def weights_of_codes(self) -> dict[str, Tensor]:
        """Returns the part of the state dict that determines the codes and their meaning."""
        return self.state_dict()

    def look_ups(
        self,
        latents: Float[Tensor, "B N D"],  # noqa: ARG002 - for those with a codebook
        codes: Int64[Tensor, "B M"] | None,  # noqa: ARG002
    ) -> list[LookUp]:
        """Returns the learned codebooks behind these latents and codes (None: not quantized); empty where none is
        learned."""
        return []

    def at_step(self, step: int, steps: int) -> None:
        """Called before each training step (0-based, of a run of `steps`): temperatures and weights have schedules."""

    def moving_once(self) -> AbstractContextManager[None]:
        """Context of the forward passes of one training step: an EMA codebook is updated once, at its end.

        All micro-batches then see the same codes, and count as one batch.
        """
        return nullcontext()
