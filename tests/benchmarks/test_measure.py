"""The measurement that the benchmarks share: fair order, right ratios, the memory that a call takes."""

import sys
from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.measure import Timing, peak_extra_memory, side_by_side
from tests.fake_clock import FakeClock

MIB = 1 << 20


def test_ratios_are_those_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", clock)
    work = {"short": partial(clock.pass_by, 0.01), "long": partial(clock.pass_by, 0.03)}
    timings = side_by_side(work, rounds=5, warmup=0)
    assert timings["short"].median == pytest.approx(0.01)
    assert timings["long"].ratio(timings["short"]) == pytest.approx(3)
    assert timings["short"].ratio(timings["short"]) == 1


def test_rounds_are_interleaved_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    baselines: dict[str, Callable[[], object]] = {name: partial(calls.append, name) for name in "abc"}
    timings = side_by_side(baselines, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_a_timing_is_medians() -> None:
    timing = Timing((2.0, 4.0, 100.0))
    assert timing.median == 4
    assert timing.rate(32) == 8
    # Within each round twice as long, however the machine slows all contenders in the last one.
    assert timing.ratio(Timing((1.0, 2.0, 50.0))) == 2
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(1 / 3)
    assert Timing((5.0,)).spread == 0


def prepare(mebibytes: int) -> Callable[[], int]:
    """A call that holds so much at its peak; what was held before, or still is, does not count."""
    before = b"x" * (100 * MIB)
    b"x" * (200 * MIB)
    # Ones and not zeros: memory that nobody writes to is not resident.
    return lambda: len(before) + len(b"x" * (mebibytes * MIB))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is read from /proc")
def test_memory_is_the_rise_of_the_peak() -> None:
    assert peak_extra_memory(partial(prepare, 48)) / MIB == pytest.approx(48, abs=4)
