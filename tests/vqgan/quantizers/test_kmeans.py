"""k-means finds clusters that are there, and starts from centers that are far apart."""

import itertools

import pytest
import torch

from tests.vqgan.quantizers.mixtures import mixture, modes
from vqgan.quantizers.kmeans import kmeans

pytestmark = pytest.mark.threads


def test_separated_clusters_are_found() -> None:
    centers = 10 * torch.eye(6)
    found = kmeans(mixture(centers, 600, seed=0, spread=0.1), 6, 10, torch.Generator().manual_seed(0))
    distances = torch.cdist(centers, found)
    assert sorted(distances.argmin(-1).tolist()) == list(range(6))
    assert distances.min(-1).values.max() < 0.05


def test_many_clusters_are_found_though_a_round_draws_several_centers() -> None:
    centers = modes(256, 16)
    found = kmeans(mixture(centers, 2048, seed=0, spread=0.005), 256, 5, torch.Generator().manual_seed(0))
    assert (torch.cdist(centers, found).min(-1).values < 0.1).float().mean() > 0.95


def test_centers_are_generated_as_if_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third and the fourth center come from one round: every way to four centers, against its probability."""
    monkeypatch.setattr("vqgan.quantizers.kmeans._ROUND_SHARE", 1)
    vectors = torch.tensor([[0.0], [1.0], [1.5], [4.0], [4.5]])
    distances = torch.cdist(vectors, vectors).square()
    expected = torch.zeros(5)  # probability that a vector is left out
    for order in itertools.permutations(range(5), 4):
        probability = 1 / 5
        for place in range(1, 4):
            weights = distances[list(order[:place])].amin(0)
            probability *= (weights[order[place]] / weights.sum()).item()
        expected[10 - sum(order)] += probability
    generator = torch.Generator().manual_seed(0)
    left_out = [10 - _indices(kmeans(vectors, 4, 0, generator), vectors) for _ in range(600)]
    shares = torch.tensor(left_out).bincount(minlength=5) / 600
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.06)


def _indices(centers: torch.Tensor, vectors: torch.Tensor) -> int:
    return int(torch.cdist(centers, vectors).argmin(-1).sum())


def test_more_clusters_than_vectors_put_one_on_each_vector() -> None:
    vectors = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    found = kmeans(vectors, 100, 3, torch.Generator().manual_seed(0))
    assert found.shape == (100, 3)
    assert found.isfinite().all()
    distances = torch.cdist(vectors, found)
    assert distances.min(-1).values.max() < 1e-3
    assert distances.min(0).values.max() < 1e-3, "a cluster that nobody chose stays where it was"


def test_iterations_lower_the_error() -> None:
    vectors = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    errors = []
    for iterations in (0, 1, 10):
        found = kmeans(vectors, 50, iterations, torch.Generator().manual_seed(0))
        errors.append(torch.cdist(vectors, found).min(-1).values.square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_at_the_end_every_center_is_the_mean_of_the_vectors_nearest_to_it() -> None:
    vectors = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    found = kmeans(vectors, 60, 60, torch.Generator().manual_seed(0))
    codes = torch.cdist(vectors, found).argmin(-1)
    means = torch.stack([vectors[codes == code].mean(0) for code in range(60)])
    torch.testing.assert_close(found, means)
    assert codes.bincount().min() == 1, "of one vector as well"


def test_it_is_a_function_of_its_generator() -> None:
    vectors = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, again, other = (kmeans(vectors, 100, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "and leaves the global one alone"
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
