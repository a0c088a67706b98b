"""Deep stacks of equal blocks by shallow ones: which shallow networks to record, and how often each counts."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from vqgan.planning.step_recorder import StepRecorder

KindT = TypeVar("KindT", bound=Hashable)

Stacks = Mapping[str, Sequence[KindT]]
"""Of each stack of blocks its blocks' kinds, in their order; blocks of one kind are of one shape and do the same."""


class Shallow(NamedTuple):
    """A network with stacks that are as deep as it is recorded, and how often the recording counts."""

    stacks: Mapping[str, Sequence[Hashable]]
    times: int


def shallow_networks(stacks: Stacks[KindT], kept: int) -> list[Shallow]:
    """Returns the network with `kept` blocks at each end of each stack, and the same with one more of each kind between
    them.

    Counted as said they sum up to the whole network (`vqgan.planning.footprint`). A stack that is not deeper stays.
    """
    ends = {name: _ends(kinds, kept) for name, kinds in stacks.items()}
    base = {name: [*first, *last] for name, (first, last) in ends.items()}
    others: list[Shallow] = []
    for name, kinds in stacks.items():
        first, last = ends[name]
        between = Counter(kinds[len(first) : len(kinds) - len(last)])
        others += [Shallow(base | {name: [*first, kind, *last]}, times) for kind, times in between.items()]
    return [Shallow(base, 1 - sum(other.times for other in others)), *others]


def watch_blocks(recording: StepRecorder, stacks: Mapping[str, Sequence[nn.Module]], kept: int) -> None:
    """Make windows of the passes through each block; those between `kept` ones at each end share one."""
    for stack, blocks in stacks.items():
        for index, block in enumerate(blocks):
            place = str(index) if index < kept else str(index - len(blocks))
            if kept <= index < len(blocks) - kept:
                place = "between"
            _watch(recording, block, f"{stack} {place}", f"after {stack}" if index == len(blocks) - 1 else None)


def _ends(kinds: Sequence[KindT], kept: int) -> tuple[Sequence[KindT], Sequence[KindT]]:
    """All where only one is left out, or none: recording that as well would be no less work."""
    return (kinds, ()) if len(kinds) <= 2 * kept + 1 else (kinds[:kept], kinds[-kept:])


def _watch(recording: StepRecorder, block: nn.Module, name: str, afterwards: str | None) -> None:
    def enters(_block: nn.Module, _args: object) -> None:
        recording.enter(f"{name}, forward")

    def leaves(_block: nn.Module, _args: object, result: Tensor) -> None:
        if result.requires_grad:  # its gradient is there when the backward pass comes to the block
            result.register_hook(lambda _: recording.enter(f"{name}, backward"))
        if afterwards is not None:
            recording.enter(afterwards)

    block.register_forward_pre_hook(enters)
    block.register_forward_hook(leaves)
