"""Progress display of a run: log lines, and below them a bar on a terminal."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping

from tqdm import tqdm

from vqgan.data.source import printable

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """Step count, images per second, time left and the latest metrics. Silent unless `visible`."""

    def __init__(self, title: str, first_step: int, steps: int, visible: bool) -> None:
        self._title = title
        self._steps = steps
        self._visible = visible
        self.time_left = TimeLeft()
        self._bar: tqdm | None = None
        if visible and _has_room():
            self._bar = tqdm(total=steps, initial=first_step, desc=title, dynamic_ncols=True, bar_format=_BAR)

    def advance(self) -> None:
        """Advances by one step."""
        if self._bar is not None:
            self._bar.update()

    def go_back(self, step: int) -> None:
        """Sets the step that the run resumes from."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def report(self, step: int, values: Mapping[str, float], images_per_second: float) -> None:
        """Shows metrics after `step` steps."""
        if not self._visible:
            return
        shown = [f"{images_per_second:.0f} images/s"]
        if (left := self.time_left.seconds(self._steps - step)) is not None:
            shown.append(f"{tqdm.format_interval(left)} left")
        if self._bar is not None:  # short: what is longer than the line would be cut
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self.say("  ".join([f"step {step}/{self._steps}", *shown, *_as_text(values)]))

    def first(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Reports that the run's first step is done, long before the first means."""
        self.say("  ".join([f"step {step}/{self._steps}", f"{seconds:.1f} s", *_as_text(values)]))

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._visible:
            tqdm.write(printable(f"{self._title}: {text}"), file=sys.stderr)

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


class TimeLeft:
    """The time left, by the speed of the latest steps: others may use the machine now, or have stopped to.

    Evaluations, previews and checkpoints are as slow as the machine is. What they took so far in parts of what the
    steps took is expected of the rest too; a mean of seconds would be of another speed. `clock` gives seconds.
    """

    RECENT = 30.0
    """Seconds of training that count, or `FEWEST` steps where those take longer."""
    FEWEST = 5

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: deque[float] = deque()
        self._recent = 0.0
        self._in_steps = 0.0
        self._between = 0.0
        self._began: float | None = None
        self._ended: float | None = None

    def step_begins(self) -> None:
        """From here on time is the step's, its data included."""
        now = self._clock()
        if self._ended is not None and self._in_steps:  # what precedes the first steps will not come again
            self._between += now - self._ended
        self._began = now

    def step_ends(self) -> None:
        """From here on it is an evaluation's, a preview's or a checkpoint's."""
        now = self._clock()
        first = self._ended is None
        self._ended = now
        if self._began is None or first:  # the first step compiles, allocates and fills caches: none is like it
            return
        took = now - self._began
        self._in_steps += took
        self._recent += took
        self._latest.append(took)
        while len(self._latest) > self.FEWEST and self._recent - self._latest[0] >= self.RECENT:
            self._recent -= self._latest.popleft()

    def seconds(self, steps: int) -> float | None:
        """Returns what `steps` more steps will take; None before there is anything to go by."""
        if not self._latest:
            return None
        return steps * self._recent / len(self._latest) * (1 + self._between / max(self._in_steps, 1e-9))


def _has_room() -> bool:
    """Returns whether standard error is a terminal on which a bar can be drawn: not one without rows or columns (a
    job's)."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return size.columns > 0 and size.lines > 0


def _as_text(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]
