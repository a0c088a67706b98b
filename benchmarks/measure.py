"""Fair side-by-side measurement: seconds in interleaved rounds, and peak extra memory in a fresh process each.

A busy machine slows whatever runs at that moment. So every round times every contender once, in turn and each time
from another one on, and a ratio is taken within the rounds before their median is.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, one entry a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, in parts of the median: 0.02 is a quiet machine."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def ratio(self, other: "Timing") -> float:
        """How many times as long as `other`: the median of the rounds' ratios."""
        return statistics.median(own / its for own, its in zip(self.seconds, other.seconds, strict=True))

    def rate(self, count: int) -> float:
        """Items a second (images, tokens), when one call handles `count` of them."""
        return count / self.median


def side_by_side(baselines: Mapping[str, Callable[[], object]], rounds: int = 7, warmup: int = 1) -> dict[str, Timing]:
    """Seconds of every contender in `rounds` interleaved rounds, after `warmup` rounds that do not count.

    A contender that starts work elsewhere (a GPU) has to wait for it before it returns.
    """
    names = list(baselines)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            baselines[name]()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def peak_extra_memory(prepare: Callable[[], Callable[[], object]]) -> int:
    """Bytes by which one call of what `prepare` returns raises the resident memory of a fresh process at its peak.

    `prepare` is a function of a module (or a `functools.partial` of one), so that the new process finds it. It builds
    the inputs, and calls the contender once on a small one: libraries load on first use, and that is not its memory.
    Reads the kernel's own peak (`VmHWM`), which Linux alone lets a process reset.
    """
    # A new interpreter: a forked one would start with this one's pages, free ones included.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_rise_of_peak, prepare).result()


def _rise_of_peak(prepare: Callable[[], Callable[[], object]]) -> int:
    call = prepare()
    (_PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result  # it lives until here: what a contender returns is part of its memory
    return peak - before


def _status(field: str) -> int:
    """A size of this process in bytes."""
    for line in (_PROCESS / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.removesuffix("kB")) * 1024
    raise RuntimeError(f"/proc/self/status names no {field}: this kernel does not account memory; skip the memory")
