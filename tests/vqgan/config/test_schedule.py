"""The learning rate and the loss weights, point by point."""

import math
from itertools import pairwise

import pytest
from pydantic import ValidationError

from vqgan.config.schedule import ScheduleConfig, in_steps, learning_rate_factor, ramp
from vqgan.config.schema import ConfigError, validate


def factors(steps: int, **settings: float | str) -> list[float]:
    config = ScheduleConfig.model_validate(settings)
    return [learning_rate_factor(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("shape", ["constant", "cosine", "exponential", "linear"])
def test_warm_up_plateau_and_end(shape: str) -> None:
    rates = factors(101, shape=shape, warmup=10, decay_from="50%", final_ratio=0.1)
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10:51] == [1.0] * 41
    assert rates[-1] == pytest.approx(1.0 if shape == "constant" else 0.1)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("constant", lambda p: 1.0),  # noqa: ARG005
        ("linear", lambda p: 1 - 0.8 * p),
        ("exponential", lambda p: 0.2**p),
        ("cosine", lambda p: 0.2 + 0.8 * (1 + math.cos(math.pi * p)) / 2),
    ],
)
def test_the_curves_are_their_formulas(shape: str, formula: object) -> None:
    assert callable(formula)
    rates = factors(41, shape=shape, final_ratio=0.2)
    assert rates == pytest.approx([formula(step / 40) for step in range(41)])


def test_the_decay_begins_after_the_warm_up_at_the_earliest() -> None:
    rates = factors(100, shape="linear", warmup=50, decay_from="10%", final_ratio=0.5)
    assert rates[49] == rates[50] == 1.0
    assert rates[51] < 1.0
    assert rates[99] == pytest.approx(0.5)


def test_vit_vqgans_schedule() -> None:
    """papers.md A.4: linear to full over 50k steps, cosine to half of it at 500k."""
    config = ScheduleConfig(shape="cosine", warmup=50_000, final_ratio=0.5)
    at = {step: learning_rate_factor(step, 500_000, config) for step in (0, 24_999, 49_999, 275_000, 499_999)}
    assert at == pytest.approx({0: 1 / 50_000, 24_999: 0.5, 49_999: 1, 275_000: 0.75, 499_999: 0.5}, rel=1e-4)


@pytest.mark.parametrize("shape", ["constant", "cosine", "exponential", "linear"])
def test_a_run_of_one_step_and_a_warm_up_longer_than_the_run(shape: str) -> None:
    assert factors(1, shape=shape) == [1.0]
    assert factors(3, shape=shape, warmup=10) == pytest.approx([0.1, 0.2, 0.3])


def test_ramp() -> None:
    assert [ramp(step, 10, "50%", 3) for step in range(10)] == pytest.approx([0] * 5 + [1 / 3, 2 / 3, 1, 1, 1])
    assert [ramp(step, 4, 0, 0) for step in range(4)] == [1] * 4
    assert [ramp(step, 4, "100%", 0) for step in range(4)] == [0] * 4
    assert [ramp(step, 4, 2, "0%") for step in range(4)] == [0, 0, 1, 1]


def test_a_decay_may_end_before_the_run() -> None:
    """DALL-E's dVAE: papers.md C.1, cosine from 1e-4 to 1.25e-6 over 1.2M of 3M updates."""
    config = ScheduleConfig(shape="cosine", decay_until=1_200_000, final_ratio=0.0125)
    at = {step: learning_rate_factor(step, 3_000_000, config) for step in (0, 600_000, 1_200_000, 2_999_999)}
    assert at == pytest.approx({0: 1, 600_000: 0.50625, 1_200_000: 0.0125, 2_999_999: 0.0125}, rel=1e-4)


def test_spans_are_steps_or_a_share_of_the_run() -> None:
    assert in_steps(500, 1000) == 500
    assert in_steps("25%", 1000) == 250
    assert in_steps("0.5%", 1000) == 5


@pytest.mark.parametrize("span", [-1, 0.25, "25", "25 %", "101%", "-5%", True, None])
def test_other_spans_are_refused_with_the_remedy(span: object) -> None:
    with pytest.raises(ConfigError, match=r"warmup: .*a number of steps or a share of the run such as 25%, received"):
        validate(ScheduleConfig, {"warmup": span}, "test")


@pytest.mark.parametrize("settings", [{"final_ratio": 0}, {"final_ratio": 1.5}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ScheduleConfig.model_validate(settings)
