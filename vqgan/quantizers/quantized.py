"""What every quantiser returns."""

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor


class Quantized(NamedTuple):
    """A quantiser's result.

    latents: what the decoder reads; gradients pass straight through to the encoder.
    codes: index of each latent's code, in [0, codebook size).
    loss: codebook loss plus weighted commitment loss.
    stats: scalars worth logging.
    """

    latents: Float[Tensor, "B N D"]
    codes: Int64[Tensor, "B N"]
    loss: Float[Tensor, ""]
    stats: dict[str, Tensor]
