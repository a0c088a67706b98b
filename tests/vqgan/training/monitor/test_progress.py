"""What a person sees of a run: true time left when speed changes, the same lines on a terminal as in a file."""

import errno
import io
import os
import re
import sys

import pytest

from vqgan.training.monitor import progress as progress_module
from vqgan.training.monitor.progress import Progress, TimeLeft


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stepped(left: TimeLeft, clock: Clock, seconds: list[float], between: float = 0.0) -> None:
    for took in seconds:
        left.step_begins()
        clock.now += took
        left.step_ends()
        clock.now += between


@pytest.mark.parametrize(("before", "after"), [(0.2, 2.0), (2.0, 0.2), (1.0, 30.0)])
def test_time_left_follows_the_speed_within_a_minute(before: float, after: float) -> None:
    clock = Clock()
    left = TimeLeft(clock)
    stepped(left, clock, [9.0] + [before] * 2000)
    assert left.seconds(100) == pytest.approx(100 * before, rel=0.01)
    stepped(left, clock, [after] * max(round(35 / after), 6))
    assert left.seconds(100) == pytest.approx(100 * after, rel=0.1)


def test_evaluations_count_at_the_speed_of_now() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    for _ in range(10):
        stepped(left, clock, [0.1] * 50)
        clock.now += 2.5  # an evaluation: half of what the steps take
    left.step_begins()
    assert left.seconds(1000) == pytest.approx(1000 * 0.15, rel=0.06)
    for _ in range(3):
        stepped(left, clock, [1.0] * 50)  # ten times slower, evaluations too
        clock.now += 25
    left.step_begins()
    assert left.seconds(1000) == pytest.approx(1000 * 1.5, rel=0.06)


def test_nothing_is_said_before_there_is_anything_to_go_by() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert left.seconds(10) is None
    stepped(left, clock, [60.0], between=30.0)  # compiles; then the first preview
    assert left.seconds(10) is None
    stepped(left, clock, [0.5])
    assert left.seconds(10) == pytest.approx(5.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def shown(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None) -> str:
    """A short run's standard error on a terminal of (columns, lines); None: a file."""
    stream = Terminal() if size else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress_module.os, "get_terminal_size", lambda _=0: os.terminal_size(size or (0, 0)))
    progress = Progress("stage 1", 0, 4, visible=True)
    progress.say("beginning")
    for step in range(1, 5):
        progress.time_left.step_begins()
        progress.advance()
        progress.time_left.step_ends()
        if step == 1:
            progress.first(step, {"loss": 6.9}, 0.3)
        else:
            progress.report(step, {f"loss_{number}": 1.0 for number in range(20)}, 220.0)
    progress.close()
    return stream.getvalue()


def lines(text: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", text) if line.startswith("stage 1: step")]


def test_a_terminal_shows_every_line_whole_and_a_bar_below(monkeypatch: pytest.MonkeyPatch) -> None:
    on_file = lines(shown(monkeypatch, None))
    assert len(on_file) == 4
    assert on_file[0] == "stage 1: step 1/4  0.3 s  loss 6.9"
    on_terminal = shown(monkeypatch, (60, 24))
    assert lines(on_terminal) == on_file, "nothing is cut, and all of it stays"
    assert "100%" in on_terminal
    assert "220 images/s" in on_terminal


@pytest.mark.parametrize("size", [(0, 0), (80, 0), (0, 24)])
def test_a_terminal_without_rows_or_columns_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    text = shown(monkeypatch, size)
    assert len(lines(text)) == 4
    assert "%|" not in text


def test_a_terminal_that_tells_no_size_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_size(_: int = 0) -> os.terminal_size:
        raise OSError(errno.ENOTTY, "not a terminal")

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress_module.os, "get_terminal_size", no_size)
    Progress("stage 1", 0, 4, visible=True).report(2, {"loss": 1.0}, 1.0)
    assert stream.getvalue() == "stage 1: step 2/4  1 images/s  loss 1\n"
