"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from vqgan.data.source import printable


class Progress:
    """Step count, pictures per second, time left and the latest figures. Silent unless `visible`."""

    def __init__(self, title: str, first_step: int, steps: int, visible: bool) -> None:
        self._title = title
        self._steps = steps
        self._visible = visible
        self._first = first_step
        self._start = time.monotonic()
        on_terminal = visible and sys.stderr.isatty()
        self._bar: tqdm | None = None
        if on_terminal:
            self._bar = tqdm(total=steps, initial=first_step, desc=title, dynamic_ncols=True, unit="step")

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def go_back(self, step: int) -> None:
        """The run goes on from `step`; the time left is estimated from there."""
        self._first = step
        self._start = time.monotonic()
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def report(self, step: int, values: Mapping[str, float], images_per_second: float) -> None:
        """Show figures after `step` steps."""
        if not self._visible:
            return
        figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(f"{images_per_second:.0f} images/s  {figures}", refresh=True)
            return
        self.say(f"step {step}/{self._steps}  {images_per_second:.0f} images/s  {self._left(step)} left  {figures}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._visible:
            tqdm.write(printable(f"{self._title}: {text}"), file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int) -> str:
        done = step - self._first
        seconds = (time.monotonic() - self._start) / max(done, 1) * (self._steps - step)
        return str(tqdm.format_interval(seconds))
