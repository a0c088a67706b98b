"""The adversary's own arithmetic: fp16's scale, lazy R1, LeCam and its averages."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.config.schema import validate
from vqgan.discriminator_trainer import AdversarialConfig, DiscriminatorTrainer
from vqgan.losses.adversarial import lecam_penalty, r1_penalty
from vqgan.training.parallel.distributed import build_accelerator


def discriminator_trainer(**settings: Any) -> DiscriminatorTrainer:
    torch.manual_seed(0)
    values = {"weight": 0.5, "r1_gamma": 0.0, "discriminator": {"kind": "patchgan", "base_channels": 4, "layers": 1}}
    config = validate(AdversarialConfig, values | settings, "test")
    return DiscriminatorTrainer(config, 16, build_accelerator(), steps=100, precision="fp32")


def images(seed: int) -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_scale_changes_neither_the_generators_loss_nor_its_gradient() -> None:
    """fp16 multiplies what comes back and divides it again: what reaches the images is the true gradient."""
    found = []
    for scale in (1.0, 2.0**12):
        last = nn.Parameter(torch.full((3, 1, 1), 0.7))
        generated = images(0) * last
        distance = (generated - images(1)).abs().mean()
        loss, weight = discriminator_trainer().generator_loss(generated, distance, last, 0, scale)
        (gradient,) = torch.autograd.grad(loss, last)
        found.append((loss.detach(), weight, gradient))
    assert found[0][2].norm() > 1e-4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("every", [1, 4, 16])
def test_a_lazy_r1_penalty_weighs_as_many_steps_as_it_stands_for(every: int) -> None:
    gamma, real = 3.0, images(2)
    losses = []
    for settings in ({"r1_gamma": gamma, "r1_every": every}, {"r1_gamma": 0.0}):
        player = discriminator_trainer(**settings)
        fake = player.discriminator(images(3)).detach()
        loss, _ = player._loss(real, fake, step=2 * every)
        losses.append(loss.item())
        penalty = r1_penalty(player.discriminator, real).item()
    assert penalty > 1e-4
    assert losses[0] - losses[1] == pytest.approx(gamma / 2 * every * penalty, rel=1e-3)


def test_between_lazy_penalties_there_is_none() -> None:
    player = discriminator_trainer(r1_gamma=3.0, r1_every=4)
    _, metrics = player._loss(images(2), player.discriminator(images(3)).detach(), step=5)
    assert "r1_penalty" not in metrics


def test_lecam_pulls_each_side_to_the_average_of_the_other() -> None:
    real, fake = torch.tensor([3.0, 5.0]), torch.tensor([-2.0, 0.0, -1.0])
    average_real, average_fake = torch.tensor(4.0), torch.tensor(-1.0)
    expected = ((3 + 1) ** 2 + (5 + 1) ** 2) / 2 + ((-2 - 4) ** 2 + (0 - 4) ** 2 + (-1 - 4) ** 2) / 3
    assert lecam_penalty(real, fake, average_real, average_fake).item() == pytest.approx(expected)


def test_lecams_averages_keep_the_share_that_the_decay_says() -> None:
    averages = discriminator_trainer(lecam_weight=1.0, lecam_decay=0.9)._averages
    first = averages.update(torch.tensor([1.0, 3.0]), torch.tensor([-4.0]))
    assert [value.item() for value in first] == pytest.approx([2.0, -4.0]), "the first batch starts them"
    second = averages.update(torch.tensor([12.0]), torch.tensor([6.0]))
    assert [value.item() for value in second] == pytest.approx([0.9 * 2 + 0.1 * 12, 0.9 * -4 + 0.1 * 6])
