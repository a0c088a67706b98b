"""Hold-out by hash: the same for ever, the right share, never an empty side."""

import numpy as np
import pytest

from vqgan.data.split import hash_score, held_out


def test_hash_and_hold_out() -> None:
    assert hash_score("1F600") == pytest.approx(0.649009025, abs=1e-9), "the same for ever: splits depend on it"
    scores = np.array([hash_score(str(number)) for number in range(10_000)])
    assert held_out(scores, 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert (held_out(scores, 0.1) | ~held_out(scores, 0.05)).all()
    assert held_out(np.array([0.5, 0.6, 0.6]), 0.05).tolist() == [True, False, False]
    assert held_out(np.array([0.01, 0.02]), 0.5).tolist() == [True, False]
    assert held_out(np.array([0.5]), 0.05).tolist() == [False]
