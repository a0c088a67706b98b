"""Adversarial losses of progressive text-to-image generation, as functions of logits (papers.md E.5).

As in AttnGAN, `code/miscc/losses.py`, with its sigmoid and cross-entropy as one function of logits. Letters of the
terms: R real, F fake (generated), W real with the caption of another image; u unconditional, c conditional.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Logits = Float[Tensor, "B"]
Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class GANLosses:
    """Elementwise losses of a logit: the discriminator's on real and on fake images, and the generator's."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


GAN_LOSSES = {
    "logistic": GANLosses(lambda x: F.softplus(-x), F.softplus, lambda x: F.softplus(-x)),
    "hinge": GANLosses(lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), lambda x: -x),
}
"""Losses by their name in a config. logistic is AttnGAN's cross-entropy, non-saturating for the generator."""


class DiscriminatorTerms(NamedTuple):
    """Terms of a scale's discriminator loss, as means over its images."""

    real_unconditional: Scalar
    real_conditional: Scalar
    fake_unconditional: Scalar
    fake_conditional: Scalar
    wrong_conditional: Scalar

    def total(self) -> Scalar:
        """Returns (R_u + R_c) / 2 + (F_u + F_c + W_c) / 3."""
        real = (self.real_unconditional + self.real_conditional) / 2
        return real + (self.fake_unconditional + self.fake_conditional + self.wrong_conditional) / 3


def discriminator_terms(
    adversarial: GANLosses,
    real: tuple[Logits, Logits],
    fake: tuple[Logits, Logits],
    wrong: Logits,
    wrong_counts: Bool[Tensor, "B"],
    per_wrong: Scalar | None = None,
) -> DiscriminatorTerms:
    """Computes the terms from (unconditional, conditional) logits, in fp32.

    `wrong` are conditional logits of real images with the caption of another image; `wrong_counts` is false where both
    captions are equal, and such pairs are left out of the mean, which is 0 if none is left. With gradient accumulation
    `per_wrong` replaces 1 / count, because micro-batches have different counts.
    """
    if per_wrong is None:
        per_wrong = 1 / wrong_counts.sum().clamp(min=1)
    wrong_losses = adversarial.fake(wrong.float()) * wrong_counts
    return DiscriminatorTerms(
        adversarial.real(real[0].float()).mean(),
        adversarial.real(real[1].float()).mean(),
        adversarial.fake(fake[0].float()).mean(),
        adversarial.fake(fake[1].float()).mean(),
        wrong_losses.sum() * per_wrong,
    )


def generator_loss(adversarial: GANLosses, fake: tuple[Logits, Logits]) -> Scalar:
    """Returns u + c of one scale; the generator's loss is the sum over the scales."""
    return adversarial.generator(fake[0].float()).mean() + adversarial.generator(fake[1].float()).mean()
