"""The players' losses against the formulas, written out by hand."""

import math

import pytest
import torch

from parti.fused.synthesis.losses import GAN_LOSSES, DiscriminatorTerms, discriminator_terms, generator_loss

pytestmark = pytest.mark.slow_threads

REAL = (torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0]))
FAKE = (torch.tensor([-0.5, 1.5]), torch.tensor([-2.0, 0.0]))
WRONG = torch.tensor([1.0, -4.0])
BOTH, FIRST, NONE = (torch.tensor(counts) for counts in ([True, True], [True, False], [False, False]))


def cross_entropy(logits: torch.Tensor, target: float) -> float:
    """-ln p(target), by sigmoid and logarithm as AttnGAN writes it."""
    probability = [1 / (1 + math.exp(-logit)) for logit in logits.tolist()]
    return sum(-math.log(p if target else 1 - p) for p in probability) / len(probability)


def hinge(logits: torch.Tensor, sign: int) -> float:
    return sum(max(0.0, 1 - sign * logit) for logit in logits.tolist()) / len(logits)


def test_the_logistic_discriminator_is_attngans() -> None:
    real = (cross_entropy(REAL[0], 1) + cross_entropy(REAL[1], 1)) / 2
    fake = (cross_entropy(FAKE[0], 0) + cross_entropy(FAKE[1], 0) + cross_entropy(WRONG, 0)) / 3
    found = discriminator_terms(GAN_LOSSES["logistic"], REAL, FAKE, WRONG, BOTH).total()
    assert found.item() == pytest.approx(real + fake, rel=1e-6)


def test_the_hinge_discriminator() -> None:
    real = (hinge(REAL[0], 1) + hinge(REAL[1], 1)) / 2
    fake = (hinge(FAKE[0], -1) + hinge(FAKE[1], -1) + hinge(WRONG, -1)) / 3
    found = discriminator_terms(GAN_LOSSES["hinge"], REAL, FAKE, WRONG, BOTH).total()
    assert found.item() == pytest.approx(real + fake, rel=1e-6)


def test_the_generators() -> None:
    logistic = cross_entropy(FAKE[0], 1) + cross_entropy(FAKE[1], 1)
    assert generator_loss(GAN_LOSSES["logistic"], FAKE).item() == pytest.approx(logistic, rel=1e-6)
    linear = -FAKE[0].mean().item() - FAKE[1].mean().item()
    assert generator_loss(GAN_LOSSES["hinge"], FAKE).item() == pytest.approx(linear, rel=1e-6)


def test_a_shifted_caption_that_is_the_same_one_is_not_wrong() -> None:
    terms = discriminator_terms(GAN_LOSSES["logistic"], REAL, FAKE, WRONG, FIRST)
    assert terms.wrong_conditional.item() == pytest.approx(cross_entropy(WRONG[:1], 0), rel=1e-6)
    assert discriminator_terms(GAN_LOSSES["logistic"], REAL, FAKE, WRONG, NONE).wrong_conditional.item() == 0


def test_the_sides_have_weights_of_a_half_and_a_third() -> None:
    terms = DiscriminatorTerms(*(torch.tensor(value, requires_grad=True) for value in (1.0, 2.0, 3.0, 4.0, 5.0)))
    gradients = torch.autograd.grad(terms.total(), list(terms))
    assert [gradient.item() for gradient in gradients] == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("adversarial", GAN_LOSSES)
def test_each_side_wants_the_logits_its_own_way(adversarial: str) -> None:
    """Gradients at a logit of 0: the discriminator pushes real up and drawn down, the generator drawn up."""
    zero = torch.zeros(1, requires_grad=True)
    for loss, sign in (
        (GAN_LOSSES[adversarial].real, -1),
        (GAN_LOSSES[adversarial].fake, 1),
        (GAN_LOSSES[adversarial].generator, -1),
    ):
        (gradient,) = torch.autograd.grad(loss(zero).sum(), zero)
        assert math.copysign(1, gradient.item()) == sign
