"""The learning rate of a prolonged run: what has come down stays down, unless the schedule is changed."""

from typing import Any

import pytest

from vqgan.config.schedule import ScheduleConfig, learning_rate_factor
from vqgan.training.optim.learning_rate import LearningRate


def after(config: ScheduleConfig, steps: int, done: int) -> dict[str, Any]:
    rate = LearningRate(config, steps)
    for step in range(done):
        rate.factor(step)
    return rate.state_dict()


def prolonged(config: ScheduleConfig, state: dict[str, Any], steps: int) -> LearningRate:
    rate = LearningRate(config, steps)
    rate.load_state_dict(state)
    return rate


@pytest.mark.parametrize("shape", ["cosine", "linear", "exponential"])
def test_a_finished_run_goes_on_at_the_rate_it_had_reached(shape: str) -> None:
    config = ScheduleConfig(shape=shape, warmup=10, final_ratio=0.1)
    rate = prolonged(config, after(config, 100, 100), 400)
    assert learning_rate_factor(100, 400, config) > 0.5, "or else nothing would go up"
    assert [rate.factor(step) for step in range(100, 400)] == pytest.approx([0.1] * 300)
    assert rate.held_down(100) == pytest.approx(0.1)
    again = prolonged(config, rate.state_dict(), 400)
    assert again.factor(250) == pytest.approx(0.1), "and when it is resumed"


def test_a_run_that_decays_late_is_prolonged_at_its_full_rate() -> None:
    config = ScheduleConfig(shape="linear", warmup="5%", decay_from="80%")
    rate = prolonged(config, after(config, 100, 80), 200)
    assert [rate.factor(step) for step in range(80, 160)] == [1.0] * 80
    assert rate.factor(199) == pytest.approx(config.final_ratio)
    assert rate.held_down(80) is None


def test_a_schedule_that_is_changed_too_is_taken_at_its_word() -> None:
    before = ScheduleConfig(shape="cosine")
    now = ScheduleConfig(shape="constant")
    assert prolonged(now, after(before, 100, 100), 200).factor(100) == 1.0


@pytest.mark.parametrize("warmup", [20, "20%"])
def test_a_run_that_is_prolonged_in_its_warm_up_is_not_held_at_that(warmup: int | str) -> None:
    config = ScheduleConfig(shape="cosine", warmup=warmup)
    rate = prolonged(config, after(config, 100, 5), 200)
    assert max(rate.factor(step) for step in range(5, 200)) == 1.0


def test_an_unbroken_run_and_one_resumed_at_the_same_length_follow_the_schedule() -> None:
    config = ScheduleConfig(shape="cosine", warmup=10)
    straight = [learning_rate_factor(step, 100, config) for step in range(100)]
    rate = LearningRate(config, 100)
    first = [rate.factor(step) for step in range(60)]
    resumed = prolonged(config, rate.state_dict(), 100)
    assert first + [resumed.factor(step) for step in range(60, 100)] == straight
