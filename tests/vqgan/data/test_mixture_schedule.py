"""Weights: exact shares in every stretch, and random access that agrees with counting."""

import itertools

import pytest

from vqgan.data.mixture_schedule import LONGEST_CYCLE, MixtureSchedule

WEIGHTS = [[1], [3, 1], [1, 1, 1], [0.7, 0.3], [5, 3, 2, 1], [100, *[1] * 40], [1e-3, 2, 0.5], [1 / 3, 2 / 3, 0.1]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_prefix_has_each_row_within_one_turn_of_its_share(weights: list[float]) -> None:
    order = MixtureSchedule(weights)
    total = sum(order.turns)
    assert [turns / total for turns in order.turns] == pytest.approx([w / sum(weights) for w in weights], abs=1e-4)
    assert [order.cycle.tolist().count(row) for row in range(len(weights))] == order.turns
    had = [0] * len(weights)
    for position, row in enumerate(order.cycle.tolist(), start=1):
        had[row] += 1
        assert all(abs(count * total - turns * position) < total for count, turns in zip(had, order.turns, strict=True))


def test_random_access_agrees_with_counting() -> None:
    order = MixtureSchedule([5, 3, 2])
    had = [0, 0, 0]
    for position in range(35):
        assert order.counts(position) == had
        row, turn = order[position]
        assert turn == had[row]
        had[row] += 1


def test_whole_number_shares_are_spread_evenly() -> None:
    assert MixtureSchedule([1, 1]).cycle.tolist() in ([0, 1], [1, 0])
    ones = [position for position in range(40) if MixtureSchedule([3, 1])[position][0] == 1]
    assert {later - earlier for earlier, later in itertools.pairwise(ones)} == {4}


def test_weights_of_many_digits_keep_a_cycle_of_bounded_length_and_no_row_is_lost() -> None:
    order = MixtureSchedule([0.123456789, 1e-9, 1])
    assert abs(len(order.cycle) - LONGEST_CYCLE) <= 3
    assert min(order.turns) == 1


def test_the_order_is_the_same_for_ever() -> None:
    """A resumed run goes on with it."""
    assert MixtureSchedule([5, 3, 2]).cycle.tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]
    assert MixtureSchedule([0.7, 0.3]).cycle.tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert MixtureSchedule([1, 1, 1]).cycle.tolist() == [0, 1, 2], "the first of equals"


def test_weights_are_rounded_only_where_their_exact_cycle_is_too_long() -> None:
    assert MixtureSchedule([1, LONGEST_CYCLE - 1]).turns == [1, LONGEST_CYCLE - 1]
    assert MixtureSchedule([2, 2 * LONGEST_CYCLE - 2]).turns == [1, LONGEST_CYCLE - 1], "a common divisor is no length"
    assert MixtureSchedule([1, LONGEST_CYCLE]).turns == [1, LONGEST_CYCLE - 1]
