"""What every quantizer offers: latents to codes and back, whatever the idea behind it.

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
    """One learned codebook, and what it was asked in a batch: each vector that it replaced, and by which code.

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
        """Quantize, with losses; random draws only in training mode."""

    @abstractmethod
    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B M"]:
        """Codes alone, without losses and without chance."""

    @abstractmethod
    def embed(self, codes: Int64[Tensor, "B M"]) -> Float[Tensor, "B N E"]:
        """Returns the latents that the decoder reads for these codes: in evaluation mode exactly those of `forward`."""

    @abstractmethod
    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Returns what the decoder reads while training without codes: the same space, not rounded to any code."""

    def weights_of_codes(self) -> dict[str, Tensor]:
        """Returns what of the state decides which code is chosen and what it stands for."""
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
        """Around the forward passes of one training step: a codebook that follows its latents moves at their end.

        All micro-batches then meet the same codes, and count as one batch.
        """
        return nullcontext()
