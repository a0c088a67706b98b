"""The memory of a training step, of a network as deep as it is or concluded from shallower ones.

Blocks of one kind, one behind the other, do the same one after the other. So at any moment in the pass through a block,
or through what comes before and after them all, each block more adds the same bytes of each kind: memory is affine in
the depth, window by window (`StepRecorder.enter`), and the most of all is the most of the windows' most. In the forward
pass memory grows from block to block by the same, in the backward pass it changes by the same, so what lies between two
blocks is between them, and the windows of blocks near both ends are enough.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vqgan.planning.step_recorder import KINDS, Kind, Peak, StepRecorder


class Counted(NamedTuple):
    """A recording, the moment at which training begins in it, and how often it counts."""

    recording: StepRecorder
    since: int
    times: int = 1


class Footprint:
    """The sum of recordings, window by window: of one, or of a shallow network and of the same with a block more.

    `1 - n` times the shallow one and `n` times the other are that with n blocks more. What a block adds may be found
    in a simpler step: once the shallow network's own, `-n` times its simpler one, `n` times the other's simpler one.
    The first recording says which windows there are; the others may have more.
    """

    def __init__(self, recordings: Sequence[Counted]) -> None:
        self._recordings = recordings

    def peak(self, share: Mapping[Kind, float] | None = None) -> Peak:
        """Returns the moment of most memory, where of each kind a process has only a `share`."""
        shares = share or {}
        peaks = [counted.recording.peaks(counted.since, shares) for counted in self._recordings]
        most: Peak | None = None
        for window in peaks[0]:
            whole: dict[Kind, float] = {
                kind: sum(
                    counted.times * of_one[window][kind]
                    for counted, of_one in zip(self._recordings, peaks, strict=True)
                )
                for kind in KINDS
            }
            peak = Peak.shared(whole, shares)
            if most is None or peak.total > most.total:
                most = peak
        assert most is not None, "a recording has at least one moment"
        return most

    def largest(self, kind: Kind) -> int:
        """Most bytes of one kind at any moment."""
        return self.peak({other: 0.0 for other in KINDS if other != kind}).total
