"""GAN losses by hand, R1 and the adaptive weight where the gradients are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vqgan.losses.adversarial import ADVERSARIAL_LOSSES, adaptive_weight, lecam_penalty, r1_penalty

pytestmark = pytest.mark.threads

REAL = torch.tensor([2.0, -1.0, 0.5])
FAKE = torch.tensor([-3.0, 0.0, 1.5])


def log_sigmoid(logits: torch.Tensor) -> np.ndarray:
    return -np.log1p(np.exp(-logits.double().numpy()))


def test_non_saturating_is_two_cross_entropies() -> None:
    loss = ADVERSARIAL_LOSSES["non_saturating"]
    assert loss.generator(FAKE).item() == pytest.approx(-log_sigmoid(FAKE).mean())
    # 1 - sigmoid(x) = sigmoid(-x)
    expected = -log_sigmoid(REAL).mean() - log_sigmoid(-FAKE).mean()
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(expected)


def test_hinge_by_hand() -> None:
    loss = ADVERSARIAL_LOSSES["hinge"]
    assert loss.generator(FAKE).item() == pytest.approx(0.5)
    # real: relu(1 - [2, -1, 0.5]) = [0, 2, 0.5]; fake: relu(1 + [-3, 0, 1.5]) = [0, 1, 2.5]
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx((2.5 / 3 + 3.5 / 3) / 2)


def test_vanilla_is_half_the_logistic_loss_with_a_linear_generator() -> None:
    loss = ADVERSARIAL_LOSSES["vanilla"]
    assert loss.generator(FAKE).item() == pytest.approx(0.5)
    logistic = ADVERSARIAL_LOSSES["non_saturating"].discriminator(REAL, FAKE)
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(logistic.item() / 2)


@pytest.mark.parametrize("kind", ADVERSARIAL_LOSSES)
def test_each_side_pulls_in_its_direction(kind: str) -> None:
    loss = ADVERSARIAL_LOSSES[kind]
    real, fake = (torch.zeros(2, 3, 3, requires_grad=True) for _ in range(2))
    gradients = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert (gradients[0] < 0).all()
    assert (gradients[1] > 0).all()
    (gradient,) = torch.autograd.grad(loss.generator(fake), fake)
    assert (gradient < 0).all()


@pytest.mark.parametrize("kind", ADVERSARIAL_LOSSES)
def test_losses_are_fp32_and_stay_finite(kind: str) -> None:
    loss = ADVERSARIAL_LOSSES[kind]
    extreme = torch.tensor([-300.0, 300.0], dtype=torch.bfloat16)
    for value in (loss.generator(extreme), loss.discriminator(extreme, extreme)):
        assert value.dtype == torch.float32
        assert value.isfinite()


@pytest.mark.parametrize("kind", ADVERSARIAL_LOSSES)
def test_each_sides_lowered_logits_are_cast_up_before_anything_else(kind: str) -> None:
    loss = ADVERSARIAL_LOSSES[kind]
    real, fake = (torch.linspace(-2, 3, 7) + shift for shift in (0.01, 0.02))
    low_real, low_fake = real.bfloat16(), fake.bfloat16()
    assert torch.equal(loss.generator(low_fake), loss.generator(low_fake.float()))
    assert torch.equal(loss.discriminator(low_real, fake), loss.discriminator(low_real.float(), fake))
    assert torch.equal(loss.discriminator(real, low_fake), loss.discriminator(real, low_fake.float()))
    averages = torch.tensor(0.3), torch.tensor(-0.2)
    assert torch.equal(
        lecam_penalty(low_real, low_fake, *averages), lecam_penalty(low_real.float(), low_fake.float(), *averages)
    )


def test_r1_of_a_linear_discriminator_is_its_squared_weight() -> None:
    weight = torch.randn(3, 4, 4, requires_grad=True)
    penalty = r1_penalty(lambda images: (images * weight).sum(dim=(1, 2, 3)) + 7, torch.randn(5, 3, 4, 4))
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)
    # |w|^2 has the gradient 2 w: the penalty trains the weights.
    torch.testing.assert_close(torch.autograd.grad(penalty, weight)[0], 2 * weight)


def test_r1_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    images = torch.randn(4, 3, 2, 2)
    exact = nn.Sequential(*network).double()
    points, step = images.double(), 1e-5
    squares = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for i in range(12):
            nudge = torch.zeros(12, dtype=torch.float64)
            nudge[i] = step
            nudge = nudge.view(3, 2, 2)
            squares += ((exact(points + nudge) - exact(points - nudge)).squeeze(1) / (2 * step)).square()
    network.float()
    assert r1_penalty(network, images).item() == pytest.approx(squares.mean().item(), rel=1e-4)


def test_r1_is_fp32_under_autocast_and_leaves_the_images_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1))
    images = torch.randn(2, 3, 4, 4)
    reference = r1_penalty(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = r1_penalty(network, images)
    assert torch.equal(lowered, reference)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    reference.backward()
    assert all(parameter.grad is not None for parameter in network[0].parameters() if parameter.ndim > 1)


def test_r1_of_lowered_images_is_fp32() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    images = torch.randn(4, 3, 2, 2).bfloat16()
    assert torch.equal(r1_penalty(network, images), r1_penalty(network, images.float()))


def test_lecam_holds_each_side_to_the_average_of_the_other_by_hand() -> None:
    real, fake, average_real, average_fake = (
        values.clone().requires_grad_() for values in (REAL, FAKE, torch.tensor(1.5), torch.tensor(-2.0))
    )
    penalty = lecam_penalty(real, fake, average_real, average_fake)
    # real - average_fake: [4, 1, 2.5]; fake - average_real: [-4.5, -1.5, 0]
    assert penalty.item() == pytest.approx((16 + 1 + 6.25) / 3 + (20.25 + 2.25) / 3)
    penalty.backward()
    assert real.grad is not None
    assert fake.grad is not None
    torch.testing.assert_close(real.grad, 2 / 3 * torch.tensor([4.0, 1.0, 2.5]))
    torch.testing.assert_close(fake.grad, 2 / 3 * torch.tensor([-4.5, -1.5, 0.0]))
    assert average_real.grad is None, "the averages are constants"
    assert average_fake.grad is None
    lowered = lecam_penalty(*(side.detach().bfloat16() for side in (real, fake)), average_real, average_fake)
    assert lowered.dtype == torch.float32


def test_adaptive_weight_matches_the_gradient_norms() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction = (weight * torch.tensor([3.0, 4.0])).sum()  # gradient of norm 5
    generator = (weight * torch.tensor([0.0, 0.5])).sum()  # of norm 0.5
    value = adaptive_weight(reconstruction, generator, weight)
    assert value.item() == pytest.approx(0.8 * 5 / (0.5 + 1e-4))
    assert not value.requires_grad
    (reconstruction + value * generator).backward()  # the graphs are still there
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([3.0, 4.0 + 0.5 * value.item()]))


def test_the_norms_of_lowered_gradients_are_fp32() -> None:
    weight = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    # In bf16 the norms would be rounded to 8 bits: sqrt(2) to 1.4140625 and sqrt(5) to 2.234375.
    reconstruction = (weight * torch.tensor([1.0, 2.0])).sum()
    generator = (weight * torch.tensor([1.0, 1.0])).sum()
    value = adaptive_weight(reconstruction, generator, weight, weight=1.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(5**0.5 / (2**0.5 + 1e-4), rel=1e-6)


def test_adaptive_weight_is_bounded() -> None:
    weight = torch.ones(2, requires_grad=True)
    strong, none = (weight * 1e6).sum(), (weight * 0).sum()
    assert adaptive_weight(strong, none, weight).item() == pytest.approx(0.8 * 1e4)
    assert adaptive_weight(none, strong, weight).item() == 0.0
    assert adaptive_weight(strong, strong, weight, weight=0.5, maximum=0.25).item() == pytest.approx(0.125)
    assert math.isfinite(adaptive_weight(none, none, weight).item())
