"""Filters against NumPy written out code by code, their order, and the draw."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parti.sampling.filters import apply_guidance, keep_top_k, keep_top_p, sample_codes
from parti.sampling.generate import SamplingConfig, sample_token
from vqgan.config.schema import ConfigError

INF = float("inf")


def random_logits(rows: int = 64, vocab: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def softmax(row: np.ndarray) -> np.ndarray:
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def slow_top_k(row: np.ndarray, k: int) -> set[int]:
    threshold = sorted(row, reverse=True)[min(k, len(row)) - 1]
    return {code for code, logit in enumerate(row) if logit >= threshold}


def slow_top_p(row: np.ndarray, p: float) -> set[int]:
    probabilities = softmax(row.astype(np.float64))
    kept: set[int] = set()
    mass = 0.0
    for code in sorted(range(len(row)), key=lambda code: (-row[code], code)):
        if mass >= p:
            break
        kept.add(code)
        mass += probabilities[code]
    return kept


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


@pytest.mark.parametrize("k", [1, 2, 7, 31, 32, 33, 1000])
def test_top_k_keeps_the_largest(k: int) -> None:
    logits = random_logits()
    filtered = keep_top_k(logits, k)
    assert kept(filtered) == [slow_top_k(row, k) for row in logits.numpy()]
    finite = filtered.isfinite()
    assert torch.equal(filtered[finite], logits[finite])


def test_top_k_keeps_ties_with_the_kth() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]])
    assert kept(keep_top_k(logits, 2)) == [{1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}]
    assert kept(keep_top_k(logits, 1)) == [{1}, {0, 1, 2, 3, 4, 5}]


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float) -> None:
    logits = random_logits()
    filtered = keep_top_p(logits, p)
    expected = [set(range(32)) for _ in logits] if p == 1 else [slow_top_p(row, p) for row in logits.numpy()]
    assert kept(filtered) == expected
    finite = filtered.isfinite()
    assert torch.equal(filtered[finite], logits[finite])


def test_top_p_is_inclusive_of_the_code_that_crosses_p() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert kept(keep_top_p(logits, 0.4)) == [{0}]
    assert kept(keep_top_p(logits, 0.6)) == [{0, 1}]  # of equals the lower code is first
    assert kept(keep_top_p(logits, 0.8)) == [{0, 1, 2}]


def test_a_tiny_p_keeps_exactly_one_code() -> None:
    assert [len(row) for row in kept(keep_top_p(random_logits(), 1e-30))] == [1] * 64
    assert kept(keep_top_p(torch.zeros(1, 5), 1e-30)) == [{0}]


def test_p_of_one_keeps_every_code_of_a_large_vocabulary() -> None:
    # In fp32 the running sum rounds to 1 long before the last code.
    logits = random_logits(8, 16_384) * 2
    assert keep_top_p(logits, 1.0).isfinite().all()


def sorting_top_p(logits: Tensor, p: float) -> Tensor:
    """The definition, by a stable sort of codes."""
    ordered, order = logits.sort(descending=True, stable=True)
    before = F.pad(ordered.softmax(-1).cumsum(-1)[:, :-1], (1, 0))
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(drop, -INF)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("levels", [0, 2, 50])
def test_large_vocabularies_are_filtered_like_small_ones(scale: float, levels: int) -> None:
    # From flat to peaked; in so many levels to a unit that most codes tie with others; with codes that cannot be drawn.
    logits = torch.randn(4, 8192, generator=torch.Generator().manual_seed(0)) * scale
    logits = (logits * levels).round() / levels if levels else logits
    for given in (logits, keep_top_k(logits, 300)):
        for p in (1e-9, 0.3, 0.9, 0.999, 1 - 1e-9):
            assert torch.equal(keep_top_p(given, p), sorting_top_p(given, p))
        for k in (1, 2, 100, 5000, 8191, 8192, 9000):
            least = given.sort(descending=True).values[:, [min(k, 8192) - 1]]
            assert torch.equal(keep_top_k(given, k), torch.where(given >= least, given, -INF))


def test_filters_leave_their_input_alone() -> None:
    logits = random_logits()
    before = logits.clone()
    keep_top_k(logits, 3)
    keep_top_p(logits, 0.5)
    assert torch.equal(logits, before)


def test_off_the_cpu_filters_read_nothing_back_to_the_host() -> None:
    logits, uniform = torch.empty(3, 64, device="meta"), torch.empty(3, device="meta", dtype=torch.float64)
    assert sample_token(logits, uniform, SamplingConfig(top_k=9, top_p=0.9)).shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        bool(logits.any())  # what this test would see


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("levels", [0, 2])
def test_filters_on_a_gpu_keep_the_same_codes(levels: int) -> None:
    logits = torch.randn(4, 8192, generator=torch.Generator().manual_seed(0)) * 2
    logits = (logits * levels).round() / levels if levels else logits
    for p in (1e-9, 0.3, 0.9, 0.999):
        assert torch.equal(keep_top_p(logits.cuda(), p).cpu(), keep_top_p(logits, p))
    for k in (1, 100, 8191, 9000):
        assert torch.equal(keep_top_k(logits.cuda(), k).cpu(), keep_top_k(logits, k))


def test_guidance_is_the_formula() -> None:
    conditional, unconditional = random_logits(seed=1), random_logits(seed=2)
    for scale in (0.0, 1.0, 1.2, 7.5):
        expected = unconditional.numpy() + scale * (conditional.numpy() - unconditional.numpy())
        np.testing.assert_allclose(apply_guidance(conditional, unconditional, scale).numpy(), expected, rtol=1e-6)
    assert torch.equal(apply_guidance(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 5, 1.0), (1.0, 0, 0.7), (1.5, 8, 0.6)]
)
def test_choose_is_temperature_then_top_k_then_top_p_then_draw(temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits(500)
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = sample_token(logits, uniform, SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p))
    for code, row, number in zip(chosen.tolist(), logits.double().numpy(), uniform.tolist(), strict=True):
        heated = row / temperature
        if top_k:
            heated = np.array([v if c in slow_top_k(heated, top_k) else -INF for c, v in enumerate(heated)])
        if top_p < 1:
            heated = np.array([v if c in slow_top_p(heated, top_p) else -INF for c, v in enumerate(heated)])
        assert code == int(np.sum(np.cumsum(softmax(heated)) <= number))


def test_the_order_matters_and_is_the_documented_one() -> None:
    last = torch.tensor([1 - 1e-9], dtype=torch.float64)  # picks the last code that is left
    # Temperature before top-p: probabilities .6 .3 .1 flatten to about .47 .33 .19, so p = .55 needs two codes.
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert sample_token(logits, last, SamplingConfig(top_p=0.55)).item() == 0
    assert sample_token(logits, last, SamplingConfig(top_p=0.55, temperature=2.0)).item() == 1
    # Top-k before top-p: of .35 .3 .2 .15, p = .75 needs three codes; among the first three alone two make .76.
    logits = torch.tensor([[0.35, 0.3, 0.2, 0.15]]).log()
    assert sample_token(logits, last, SamplingConfig(top_p=0.75)).item() == 2
    assert sample_token(logits, last, SamplingConfig(top_p=0.75, top_k=3)).item() == 1


def test_temperature_zero_takes_the_most_likely_code_whatever_the_rest() -> None:
    logits = random_logits()
    uniform = torch.rand(64, dtype=torch.float64)
    for settings in (SamplingConfig(temperature=0.0), SamplingConfig(temperature=0.0, top_k=3, top_p=0.5)):
        assert torch.equal(sample_token(logits, uniform, settings), logits.argmax(-1))
    assert torch.equal(sample_token(logits, uniform, SamplingConfig(temperature=1e-6)), logits.argmax(-1))


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.15, 0.08, 0.02])
    count = 20_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generated = sample_codes(probabilities.log().expand(count, -1), uniform).bincount(minlength=6)
    assert generated[1] == 0
    likely = probabilities > 0
    expected = probabilities[likely] * count
    chi_square = ((generated[likely] - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_the_ends_of_the_unit_interval_draw_the_first_and_last_possible_code() -> None:
    logits = torch.tensor([[-INF, -INF, 0.3, -INF, 1.0, -2.0, -INF, -INF]])
    nothing = torch.tensor([0.0], dtype=torch.float64)
    almost_one = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample_codes(logits, nothing).item() == 2
    assert sample_codes(logits, almost_one).item() == 5
    assert sample_codes(logits, torch.tensor([math.nextafter(1.0, 0.0)]).clamp(max=1 - 2**-24)).item() == 5


def test_a_filtered_code_is_never_generated() -> None:
    logits = random_logits(2000, 64)
    filtered = keep_top_k(keep_top_p(logits, 0.8), 4)
    spread = torch.cat([torch.rand(1000, dtype=torch.float64), 1 - torch.logspace(-17, -1, 1000, dtype=torch.float64)])
    uniform = spread.clamp(0, math.nextafter(1.0, 0.0))
    generated = sample_codes(filtered, uniform)
    assert filtered.gather(1, generated[:, None]).isfinite().all()


def test_a_rows_code_does_not_depend_on_the_other_rows() -> None:
    logits, uniform = random_logits(16), torch.rand(16, dtype=torch.float64)
    together = sample_codes(logits, uniform)
    alone = torch.cat([sample_codes(logits[row : row + 1], uniform[row : row + 1]) for row in range(16)])
    assert torch.equal(together, alone)


TINY = [1e-2, 1e-6, 1e-20, 1e-30, 1e-37, 1e-38, 1.2e-38, 1e-45, 1e-46, 1e-300, 5e-324]


@pytest.mark.parametrize("temperature", TINY)
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 1000, "top_p": 1e-320}])
def test_next_to_no_temperature_takes_the_most_likely_code(temperature: float, filters: dict[str, float]) -> None:
    """As 0 does; logits that are large, small, all negative or far apart too."""
    settings = SamplingConfig().overridden(temperature=temperature, **filters)
    uniform = torch.linspace(0.001, 0.999, 64, dtype=torch.float64)
    for factor, shift in ((1.0, 0.0), (1e4, 0.0), (1.0, -50.0), (1e30, 0.0)):
        logits = random_logits() * factor + shift
        # Far enough apart for the largest of these temperatures.
        logits.scatter_(1, logits.argmax(1, keepdim=True), logits.amax(1, keepdim=True) + 3 * max(1.0, factor))
        assert torch.equal(sample_token(logits, uniform, settings), logits.argmax(-1))


def test_codes_that_are_equally_likely_stay_so_at_next_to_no_temperature() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0]]).expand(1000, -1)
    generated = sample_token(logits, torch.arange(1000) / 1000, SamplingConfig(temperature=1e-38))
    assert generated.bincount(minlength=4).tolist() == [0, 500, 500, 0]


def test_a_large_temperature_draws_evenly() -> None:
    generated = sample_token(
        random_logits(1, 4).expand(1000, -1), torch.arange(1000) / 1000, SamplingConfig(temperature=1e38)
    )
    assert generated.bincount(minlength=4).tolist() == [250] * 4


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1e-300},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": INF},
        {"guidance_scale": -0.1},
        {"guidance_scale": math.nan},
        {"guidance_scale": INF},
        {"guidance_scale": 1e38},
        {"top_p": 0.0},
        {"top_p": -1e-300},
        {"top_p": 1.0000001},
        {"top_p": math.nan},
        {"top_p": INF},
        {"top_k": -1},
    ],
)
def test_settings_that_mean_nothing_are_one_line(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))) as raised:
        SamplingConfig().overridden(**settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings", [{"top_k": 2**70}, {"top_p": 1e-320}, {"top_p": 1 - 1e-16}, {"guidance_scale": 1e6}]
)
def test_extreme_settings_still_draw_codes(settings: dict[str, float]) -> None:
    config = SamplingConfig().overridden(**settings)
    guided = apply_guidance(random_logits(seed=1), random_logits(seed=2), config.guidance_scale)
    assert guided.isfinite().all()
    generated = sample_token(guided, torch.linspace(0, 0.999, 64), config)
    assert ((generated >= 0) & (generated < 32)).all()
