"""Hold-out by hash: the same for ever, the right share, never an empty side."""

import numpy as np
import pytest

from vqgan.data.split import hash_score, items_of_split, position_scores, val


def test_hash_and_hold_out() -> None:
    assert hash_score("1F600") == pytest.approx(0.649009025, abs=1e-9), "the same for ever: splits depend on it"
    scores = np.array([hash_score(str(number)) for number in range(10_000)])
    assert val(scores, 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert (val(scores, 0.1) | ~val(scores, 0.05)).all()
    assert val(np.array([0.5, 0.6, 0.6]), 0.05).tolist() == [True, False, False]
    assert val(np.array([0.01, 0.02]), 0.5).tolist() == [True, False]
    assert val(np.array([0.5]), 0.05).tolist() == [False]


def test_the_score_of_a_name_that_is_no_unicode_and_of_a_position_is_the_same_for_ever() -> None:
    assert hash_score("\udcff.png") == pytest.approx(0.124733522, abs=1e-9)
    assert position_scores(2).tolist() == pytest.approx([0.636961687, 0.269786714], abs=1e-9)
    assert position_scores(1000)[:5].tolist() == position_scores(5).tolist(), "more items leave the earlier ones' alone"
    assert val(position_scores(10_000), 0.05).mean() == pytest.approx(0.05, abs=0.01)


def test_items_that_cannot_be_told_apart_are_all_on_the_side_of_their_score() -> None:
    assert val(np.array([0.5, 0.5]), 0.5).tolist() == [False, False], "below the share, not at it"
    assert val(np.array([0.5, 0.5]), 0.6).tolist() == [True, True]
    assert val(np.zeros(0), 0.5).tolist() == []


def test_val_items_come_in_random_order_and_training_items_in_theirs() -> None:
    scores = np.array([0.03, 0.5, 0.01, 0.9, 0.02])
    assert items_of_split(scores, 0.05, "val").tolist() == [2, 4, 0]
    assert items_of_split(scores, 0.05, "train").tolist() == [1, 3]
