"""Work that the first process of a launch does alone while the others wait for it, however long it takes.

A collective would end the wait with an error after its timeout. Here the others look at a file in the run folder, in
which the first process shows every few seconds that it is alive: they wait as long as it does.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator

from vqgan.system.atomic_files import writing
from vqgan.training.parallel.distributed import RankFailure, detect_rank_failures

_BEAT = 5.0
"""Seconds between two signs of life."""
_LOOK = 0.2
"""Seconds between two looks at them."""
_DONE, _FAILED = "done", "failed"


@contextmanager
def first_process_alone(accelerator: Accelerator, folder: Path, timeout_minutes: float = 10.0) -> Iterator[bool]:
    """Inside: whether this is the process that is to do the work. All leave when it is done; all must enter.

    `folder` is one that all processes see. Raises LostProcess on those that wait where the first process failed, or
    shows no sign of life for `timeout_minutes`.
    """
    if accelerator.num_processes == 1:
        yield True
        return
    file = folder / ".first-process-at-work"
    is_first = accelerator.is_main_process
    if is_first:
        with writing(folder):
            file.write_text("0", encoding="utf-8")  # before the others look: nothing of an earlier launch is there
    _meet(accelerator)
    if is_first:
        with _showing_life(file):
            yield True
    else:
        yield False
        _wait_for_the_first(file, timeout_minutes, accelerator.process_index, accelerator.num_processes)
    _meet(accelerator)
    if is_first:
        with suppress(OSError):
            file.unlink()


def _meet(accelerator: Accelerator) -> None:
    with detect_rank_failures(accelerator):
        accelerator.wait_for_everyone()


@contextmanager
def _showing_life(file: Path) -> Iterator[None]:
    over = threading.Event()

    def show() -> None:
        beats = 0
        while not over.wait(_BEAT):
            beats += 1
            with suppress(OSError):  # a full disk is no death; the others are patient
                file.write_text(str(beats), encoding="utf-8")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    last = _FAILED
    try:
        yield
        last = _DONE
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            file.write_text(last, encoding="utf-8")


def _wait_for_the_first(file: Path, minutes: float, process: int, processes: int) -> None:
    seen, since = "", time.monotonic()
    while True:
        with suppress(OSError):
            now = file.read_text(encoding="utf-8")
            if now == _DONE:
                return
            if now == _FAILED:
                reason = "the first process ended with an error"
                break
            if now != seen:
                seen, since = now, time.monotonic()
        if time.monotonic() - since > 60 * minutes:
            reason = f"the first process has shown no sign of life for {minutes:g} minutes"
            break
        time.sleep(_LOOK)
    raise RankFailure(
        f"process {process} of {processes} ends, as {reason}; see what that one said, then run the same command again"
    )
