"""GAN losses on logits, the R1 and LeCam penalties, and taming's adaptive weight.

Logits have any shape (one an image, or one a patch); every loss is a mean over all of them. Sources: non-saturating
logistic, Goodfellow 1406.2661, as in StyleGAN2 (1912.04958); hinge, 1705.02894; R1, Mescheder 1801.04406; hinge and
vanilla with their factor of a half, and the adaptive weight, CompVis/taming-transformers
`taming/modules/losses/vqperceptual.py` (VQGAN, 2012.09841, equation 7).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Logits = Float[Tensor, "..."]
Scalar = Float[Tensor, ""]


def non_saturating_generator_loss(fake: Logits) -> Scalar:
    """mean softplus(-D(fake)) = -mean ln sigmoid(D(fake))."""
    return functional.softplus(-fake.float()).mean()


def logistic_discriminator_loss(real: Logits, fake: Logits) -> Scalar:
    """mean softplus(-D(real)) + mean softplus(D(fake)): the two binary cross entropies."""
    return functional.softplus(-real.float()).mean() + functional.softplus(fake.float()).mean()


def linear_generator_loss(fake: Logits) -> Scalar:
    """-mean D(fake)."""
    return -fake.float().mean()


def hinge_discriminator_loss(real: Logits, fake: Logits) -> Scalar:
    """(mean relu(1 - D(real)) + mean relu(1 + D(fake))) / 2."""
    return (functional.relu(1 - real.float()).mean() + functional.relu(1 + fake.float()).mean()) / 2


def vanilla_discriminator_loss(real: Logits, fake: Logits) -> Scalar:
    """Half of the logistic loss, as taming's `vanilla_d_loss`."""
    return logistic_discriminator_loss(real, fake) / 2


@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of both sides: `generator(fake_logits)` and `discriminator(real_logits, fake_logits)`."""

    generator: Callable[[Logits], Scalar]
    discriminator: Callable[[Logits, Logits], Scalar]


ADVERSARIAL_LOSSES = {
    "non_saturating": AdversarialLoss(non_saturating_generator_loss, logistic_discriminator_loss),
    "hinge": AdversarialLoss(linear_generator_loss, hinge_discriminator_loss),
    "vanilla": AdversarialLoss(linear_generator_loss, vanilla_discriminator_loss),
}
"""Losses by their name in a config. StyleGAN2 is trained with `non_saturating`, taming's PatchGAN with `hinge`."""


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Float[Tensor, "B C H W"]) -> Scalar:
    """Returns the mean over the images of the squared norm of d D(x) / d x at real images; the caller multiplies by
    gamma / 2.

    Mescheder 1801.04406, equation 9. An image's logits are summed before the derivative (patches), and, as in every
    public code, so are the images': with minibatch statistics an image's gradient contains its neighbors' terms.
    fp32 whatever the autocast: squared gradients of bf16 logits are noise. Differentiable in D's weights.
    """
    with torch.autocast(images.device.type, enabled=False), torch.enable_grad():
        images = images.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()


def lecam_penalty(real: Logits, fake: Logits, average_real: Scalar, average_fake: Scalar) -> Scalar:
    """mean (D(real) - average_fake)^2 + mean (D(fake) - average_real)^2 (Tseng 2104.03310, equation 5).

    The averages are running means of D's own logits, without gradient. Logits far from the other side's average cost
    most, so a discriminator that knows its few images by heart cannot grow ever surer.
    """
    towards_fake = (real.float() - average_fake.detach()).square().mean()
    return towards_fake + (fake.float() - average_real.detach()).square().mean()


def adaptive_weight(
    reconstruction_loss: Scalar,
    generator_loss: Scalar,
    last_layer_weight: Float[Tensor, "..."],
    weight: float = 0.8,
    maximum: float = 1e4,
    epsilon: float = 1e-4,
) -> Scalar:
    """Returns weight of the generator loss that matches the two gradients' norms at the decoder's last layer; detached.

    weight * min(|d reconstruction / d W| / (|d generator / d W| + epsilon), maximum), VQGAN equation 7 with
    taming's constants (`weight` is its `disc_weight`). Each process uses its own share of the batch, as taming does.
    The losses' graphs are kept, so backward can follow. Raises RuntimeError (autograd's) if `last_layer_weight` took
    no part in both losses.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer_weight, retain_graph=True)
    (generator,) = torch.autograd.grad(generator_loss, last_layer_weight, retain_graph=True)
    ratio = reconstruction.float().norm() / (generator.float().norm() + epsilon)
    return weight * ratio.clamp(max=maximum)
