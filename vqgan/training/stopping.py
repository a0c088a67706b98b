"""Ctrl-C and SIGTERM as a request: the work ends where nothing is lost, and a second one ends it at once.

A launcher that is gone is such a request too. No signal tells of it while work is under way: a scheduler sends SIGTERM
to the launcher and to the process, for which that would be the second.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from vqgan.system.parent_process import has_launcher, signal_when_parent_ends

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_with_launcher() -> None:
    """Until something listens there is nothing to save: a process whose launcher ends gets SIGTERM (Linux)."""
    if has_launcher():
        signal_when_parent_ends(signal.SIGTERM)


class StopRequest:
    """Whether somebody asked to stop, while `listening`."""

    def __init__(self) -> None:
        self._made = False
        self._launcher: int | None = None

    @property
    def made(self) -> bool:
        return self._made or (self._launcher is not None and os.getppid() != self._launcher)

    @made.setter
    def made(self, made: bool) -> None:
        self._made = made

    @contextmanager
    def listening(self, answer: str | None) -> Iterator[None]:
        """Until the end of the block a first signal makes the request, and says `answer` on standard error (None:
        nothing, as of all processes but the first).

        The second is left to the system, which needs no cooperation of a process that hangs. A launcher of several
        processes hands on what the terminal has sent to all of them already: there, it decides what a second one does.
        """
        launched = "TORCHELASTIC_RUN_ID" in os.environ

        def stop(_number: int, _frame: object) -> None:
            self.made = True
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN if launched else signal.SIG_DFL)
            if answer is not None:
                # Not by `print`, which a signal may have interrupted.
                hint = "" if launched else "; once more to leave at once"
                os.write(2, f"{answer}{hint}\n".encode())

        before = {number: signal.signal(number, stop) for number in _SIGNALS}
        if has_launcher():
            self._launcher = os.getppid()
            signal_when_parent_ends(0)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
