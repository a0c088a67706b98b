"""The captioning loss (papers.md E.4): cross-entropy of the true words after four rows, and even attention.

    L = 1.0 CE_3 + 0.3 CE_7 + 0.5 CE_11 + 1.0 CE_14 + 1.0 mean_p (1 - sum_t alpha_tp)^2

The last term is Show, Attend and Tell's doubly stochastic attention (arXiv 1502.03044, equation 14): over a caption,
the attention on every image position should sum to one. Words and the end of a caption count, padding does not.

Legend: B captions, T text positions, P image positions, V vocabulary.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config


class CaptioningLossesConfig(Config, may_change=("row_3", "row_7", "row_11", "row_14", "attention_balance")):
    """Weights of the losses."""

    row_3: float = Field(1.0, ge=0)
    """Weight of the words predicted by Show, Attend and Tell."""
    row_7: float = Field(0.3, ge=0)
    """Weight of the words predicted after the deepest row."""
    row_11: float = Field(0.5, ge=0)
    """Weight of the words predicted after the last fused row."""
    row_14: float = Field(1.0, gt=0)
    """Weight of the words predicted after the last row."""
    attention_balance: float = Field(1.0, ge=0)
    """Weight of the doubly stochastic attention term."""

    @property
    def rows(self) -> tuple[float, ...]:
        """The weights of the rows, in the order 3, 7, 11, 14."""
        return self.row_3, self.row_7, self.row_11, self.row_14


def word_nats(
    logits: Float[Tensor, "B T V"], ids: Int64[Tensor, "B T"], predicted: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Returns the summed cross-entropy in nats of the tokens of `ids` where `predicted`; logits at t are of token
    t + 1."""
    targets = predicted[:, 1:]
    return F.cross_entropy(logits[:, :-1][targets], ids[:, 1:][targets], reduction="sum")


def attention_imbalance(attention_maps: Float[Tensor, "B T P"], predicted: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Returns the mean over captions and positions of (1 - sum of the attention over the caption's words)^2."""
    summed = (attention_maps[:, :-1] * predicted[:, 1:, None]).sum(1)
    return (1 - summed).square().mean()


def weighted(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Returns the weighted sum of `terms`."""
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return total
