"""The codebook's metrics on codes whose metrics are known."""

import math

import pytest
import torch

from vqgan.metrics.codebook import CodebookMeter, dead_codes, entropy, hits_share, norm_spread, perplexity, usage
from vqgan.metrics.protocol import Metric, Reconstructions


def measured(codes: torch.Tensor, vocab_size: int, batch_size: int) -> dict[str, Metric]:
    meter = CodebookMeter(vocab_size)
    for part in codes.split(batch_size):
        images = torch.zeros(len(part), 3, 1, 1)
        meter.add(Reconstructions(images, images, images.to(torch.uint8), images.to(torch.uint8), part))
    return {metric.name: metric for metric in meter.metrics()}


def test_of_counts() -> None:
    counts = torch.tensor([4, 0, 4, 0, 8])
    assert usage(counts).item() == pytest.approx(0.6)
    assert dead_codes(counts).item() == 2
    nats = -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))
    assert entropy(counts).item() == pytest.approx(nats)
    assert perplexity(counts).item() == pytest.approx(math.exp(nats))
    assert perplexity(torch.full((16,), 3)).item() == pytest.approx(16)
    assert entropy(torch.zeros(4, dtype=torch.int64)).item() == 0


def test_of_one_batch() -> None:
    assert hits_share(torch.tensor([[0, 1, 1], [1, 0, 3]]), 8).item() == pytest.approx(3 / 8)


def test_norm_spread_is_relative_and_zero_on_a_sphere() -> None:
    directions = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert norm_spread(directions).item() == pytest.approx(0, abs=1e-6)
    lengths = torch.tensor([1.0, 1.0, 3.0, 3.0]).unsqueeze(1)
    assert norm_spread(5 * lengths * directions).item() == pytest.approx(0.5)


@pytest.mark.parametrize("batch_size", [7, 256, 600])
def test_both_usages_whatever_the_batches(batch_size: int) -> None:
    # The first 256 images hit 2 of 10 codes, the next 256 hit 4, the last 88 hit a tenth code.
    codes = torch.zeros(600, 2, dtype=torch.int64)
    codes[100, 1] = 1
    codes[300:303, 0] = torch.tensor([5, 6, 7])
    codes[512:, 0] = 9
    metrics = measured(codes, 10, batch_size)
    assert metrics["codebook_usage_256"].value == pytest.approx((0.2 + 0.4) / 2)
    assert metrics["codebook_usage_256"].details["groups"] == 2
    assert metrics["codebook_usage_256"].details["images_left_out"] == 88
    assert metrics["codebook_usage"].value == pytest.approx(0.6)
    assert metrics["dead_codes"].value == 4
    counts = torch.bincount(codes.flatten(), minlength=10)
    assert metrics["codebook_perplexity"].value == pytest.approx(perplexity(counts).item())
    assert metrics["codebook_entropy"].value == pytest.approx(entropy(counts).item())


def test_too_few_images_for_definition_a() -> None:
    metrics = measured(torch.zeros(255, 1, dtype=torch.int64), 4, 100)
    assert metrics["codebook_usage_256"].value is None
    assert "needs 256 images at least, received 255" in metrics["codebook_usage_256"].missing
    assert metrics["codebook_usage"].value == 0.25
