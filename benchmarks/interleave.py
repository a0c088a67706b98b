"""Long drawings side by side: each pauses after every chunk of positions, and between two chunks the others go on.

An image takes seconds to minutes, so whole images one after the other would meet a busy machine in different moods.
Here every round times the same chunk of positions of every contender, in turn and each time from another one on. A
contender draws in a thread of its own, because somebody else's `generate` cannot be left and entered again; only one
of the threads runs at any time, so the clock of the process is that one's as well.

A contender that recomputes everything at every position can be too slow for whole images. Of it a round times one
step, at the middle of the chunk, and counts it once for each of the chunk's positions (the midpoint rule). That errs
in its favor: where a chunk has two middles the earlier one is taken, and where cost grows with the square of the
position, as attention's does, the sum comes out short. With 16 chunks this is at most 1% of 256 positions and 0.3% of
1,024.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from measure import Timing

Tick = Callable[[], None]

_M_ARENA_MAX = -8


@dataclass(frozen=True)
class Whole:
    """Draws a whole batch of images and calls the tick that it is given after every position."""

    draw: Callable[[Tick], object]


@dataclass(frozen=True)
class Sampled:
    """The step at one position, with all that it needs made up for it."""

    step: Callable[[int], object]


def chunk_ends(positions: int, chunks: int) -> list[int]:
    """The number of positions that are done after each chunk; chunks differ by one position at most."""
    if not 0 < chunks <= positions:
        raise ValueError(
            f"every chunk has a position: {positions} positions do not make {chunks} chunks; ask for fewer"
        )
    return [positions * (chunk + 1) // chunks for chunk in range(chunks)]


def interleave(
    baselines: Mapping[str, Whole | Sampled],
    ends: Sequence[int],
    clock: Callable[[], float],
    between: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Seconds of every contender's chunks, one entry a chunk. `between` is called before every round.

    Everything is warm before the clock starts: each contender has drawn two positions of another image.
    Raises RuntimeError when a contender did not tick once a position.
    """
    starts = [0, *ends[:-1]]
    drawings = {}
    for name, baseline in baselines.items():
        if isinstance(baseline, Whole):
            warm_up = SamplingRun(baseline, [2, ends[-1]] if ends[-1] > 2 else ends)
            warm_up.resume()
            warm_up.abandon()
            drawings[name] = SamplingRun(baseline, ends)
        else:
            baseline.step(midpoint(0, ends[0]))

    names = list(baselines)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn, (start, end) in enumerate(zip(starts, ends, strict=True)):
        between()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            baseline = baselines[name]
            before = clock()
            if isinstance(baseline, Whole):
                drawings[name].resume()
                seconds[name].append(clock() - before)
            else:
                baseline.step(midpoint(start, end))
                seconds[name].append((clock() - before) * (end - start))
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def midpoint(start: int, end: int) -> int:
    """The middle one of the positions start, ..., end - 1; the lower one of two."""
    return (start + end - 1) // 2


def whole_ratio(timing: Timing, other: Timing) -> float:
    """How many times as long as `other` the whole image took."""
    return sum(timing.seconds) / sum(other.seconds)


def spread_of_ratios(timing: Timing, other: Timing) -> float:
    """Half the distance between the quartiles of the chunks' ratios, in parts of their median."""
    return Timing(tuple(own / its for own, its in zip(timing.seconds, other.seconds, strict=True))).spread


class SamplingRun:
    """An image that is drawn in a thread, which stops at each of `ends` positions until it is told to go on."""

    def __init__(self, baseline: Whole, ends: Sequence[int]) -> None:
        self._baseline = baseline
        self._positions = ends[-1]
        self._stops = set(ends[:-1])
        self._done = 0
        self._abandoned = False
        self._failure: BaseException | None = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._intra_op_threads = torch.get_num_threads()
        threading.Thread(target=self._work, daemon=True).start()

    def resume(self) -> None:
        """Draw up to the next stop; what the drawing raised is raised here."""
        self._go.release()
        self._paused.acquire()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Draw no further."""
        self._abandoned = True
        self._go.release()
        self._paused.acquire()

    def _work(self) -> None:
        self._go.acquire()
        try:
            torch.set_num_threads(self._intra_op_threads)  # a setting of each thread
            if not self._abandoned:
                self._baseline.draw(self._tick)
                if self._done != self._positions:
                    raise RuntimeError(f"{self._positions} positions were to be drawn and {self._done} ticks came")
        except _AbandonedError:
            pass
        except BaseException as failure:  # it belongs to whoever waits
            self._failure = failure
        finally:
            self._paused.release()

    def _tick(self) -> None:
        self._done += 1
        if self._done in self._stops:
            self._paused.release()
            self._go.acquire()
            if self._abandoned:
                raise _AbandonedError


class _AbandonedError(BaseException):
    """Not an Exception: nobody's `generate` is to handle it."""


def share_one_heap() -> None:
    """glibc gives a new thread a heap of its own, with other habits than the main one's. Call before any thread is."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)
