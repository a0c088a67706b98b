"""The encoder of synthesis: its divergence, whom its noise reaches, and that it takes the blur out of the distance."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from parti.fused.synthesis.noise import seeded_noise
from parti.fused.synthesis.posterior_encoder import (
    GeneratorWithEncoder,
    PosteriorEncoder,
    PosteriorEncoderConfig,
    divergence,
)
from tests.parti.fused.synthesis.tiny_synthesis import MODEL, tiny_generator

pytestmark = pytest.mark.slow_threads

IDS = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 0, 0, 0, 0], [3, 8, 9, 0, 0, 0]])


def encoder() -> PosteriorEncoder:
    torch.manual_seed(3)
    return PosteriorEncoder(PosteriorEncoderConfig(base_channels=4, most_channels=8), MODEL)


def noise(batch: int = 3) -> torch.Tensor:
    return seeded_noise([(5, number) for number in range(batch)], MODEL.noise_shape)


def test_the_divergence_is_that_of_the_normal_distributions_and_has_their_gradient() -> None:
    torch.manual_seed(0)
    mean, log_variance = (torch.randn(3, 4, 2, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    found = divergence(mean, log_variance)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum() / 3
    torch.testing.assert_close(found, expected)
    by_mean, by_log_variance = torch.autograd.grad(found, (mean, log_variance))
    torch.testing.assert_close(by_mean, mean / 3)
    torch.testing.assert_close(by_log_variance, (log_variance.exp() - 1) / 6)
    assert divergence(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)).item() == 0


def test_every_part_of_a_image_reaches_every_part_of_its_noise() -> None:
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    mean, log_variance = encoder()(images)
    assert mean.shape == log_variance.shape == (1, *MODEL.noise_shape)
    (gradient,) = torch.autograd.grad(mean[0, 0, 0, 0], images)
    corners = gradient[0].abs().sum(0).unflatten(0, (4, 8)).unflatten(2, (4, 8)).sum((1, 3))
    assert (corners > 0).all()


def test_the_first_images_have_the_noise_of_their_real_ones_and_the_others_none_of_it() -> None:
    network, generator = encoder().eval(), tiny_generator()
    real = torch.randn(2, 3, 32, 32)
    images, known = GeneratorWithEncoder(generator, network)(IDS, noise(), real, 3)
    mean, log_variance = network(real)
    z = torch.cat([mean + log_variance.exp().sqrt() * noise()[:2], noise()[2:]])
    for one, other in zip(images, generator(IDS, z), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(known, divergence(mean, log_variance))
    for without in (
        GeneratorWithEncoder(generator, network)(IDS, noise(), real[:0], 3),
        GeneratorWithEncoder(generator, None)(IDS, noise(), real, 3),
    ):
        assert all(torch.equal(one, other) for one, other in zip(without[0], generator(IDS, noise()), strict=True))
        assert without[1].item() == 0


@pytest.mark.parametrize(("scales", "explained"), [(1, 0), (2, 3), (3, 1)])
def test_every_weight_has_a_gradient_whatever_rests(scales: int, explained: int) -> None:
    """Data-parallel training waits for all of them; those that rest get nothing."""
    network, generator = encoder(), tiny_generator()
    painter = GeneratorWithEncoder(generator, network)
    images, known = painter(IDS, noise(), torch.randn(3, 3, 32, 32)[:explained], scales)
    assert len(images) == scales
    (sum(image.square().sum() for image in images) + known).backward()
    resting = {id(weight) for weight in generator.weights_beyond(scales)}
    resting |= set() if explained else {id(weight) for weight in network.parameters()}
    for name, weight in painter.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.any()) is (id(weight) not in resting), name


def test_two_images_of_one_caption_stay_two_where_their_noise_is_known() -> None:
    """A white and a black one, both drawn by fresh noise afterwards; the nearest to both would be gray."""
    real = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None, None].expand(-1, 3, 32, 32)
    ids = IDS[:1].expand(4, -1)
    painter = GeneratorWithEncoder(tiny_generator(), encoder())
    optimizer = torch.optim.Adam(painter.parameters(), 1e-2)
    for step in range(40):
        z = seeded_noise([(step, number) for number in range(4)], MODEL.noise_shape)
        (generated,), known = painter(ids, z, real, 1)
        loss = (generated - real[..., :8, :8]).square().mean() + 0.01 * known
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        (generated,) = painter.generator(IDS[:1].expand(16, -1), noise(16), 1)
    assert generated.mean((1, 2, 3)).std() > 0.5
