"""The order of training items: each once an epoch, the same for the same seeds in every release."""

import pytest

from vqgan.data.infinite_sampler import InfiniteSampler


def items(order: InfiniteSampler, positions: range) -> list[int]:
    return [next(order.from_position(position)) for position in positions]


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_every_epoch_has_every_item_once_in_an_order_of_its_own(count: int) -> None:
    order = InfiniteSampler(count, (7, 1))
    epochs = [items(order, range(epoch * count, (epoch + 1) * count)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 4:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_resumed_run_finds_the_order_that_it_began_with() -> None:
    """Whatever was asked before, and in this release as in the one that began it."""
    assert items(InfiniteSampler(5, (7, 1)), range(10)) == [3, 0, 2, 1, 4, 4, 1, 0, 3, 2]
    assert items(InfiniteSampler(5, (7, 2)), range(5)) == [0, 2, 1, 3, 4]
    order = InfiniteSampler(5, (7, 1))
    assert items(order, range(9, -1, -1)) == [3, 0, 2, 1, 4, 4, 1, 0, 3, 2][::-1]


def test_broken_items_are_replaced_by_the_others_of_their_epoch_each_once() -> None:
    assert list(InfiniteSampler(5, (7, 1)).from_position(7)) == [0, 3, 2, 4, 1]
