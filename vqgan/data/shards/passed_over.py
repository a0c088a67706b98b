"""What of a tar shard is read over and becomes part of no sample: members without a key, holes of zeros."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from vqgan.data.unused import EXAMPLES, Unused


@dataclass
class PassedOver:
    """Of one shard: the first few names of members that make no sample, how many they are, and where holes end."""

    names: list[str] = field(default_factory=list)
    members: int = 0
    holes: list[int] = field(default_factory=list)

    def add_member(self, name: str) -> None:
        """Hidden files are expected, and not reported."""
        if PurePosixPath(name).name.startswith("."):
            return
        self.members += 1
        if len(self.names) < EXAMPLES:
            self.names.append(name)

    def add_hole(self, end: int) -> None:
        """Zeros up to byte `end` that are no end mark, though a header follows them."""
        if len(self.holes) < EXAMPLES:
            self.holes.append(end)


def unused_of(shards: Mapping[str, PassedOver]) -> tuple[Unused, ...]:
    """Returns what was skipped in shards, by their names."""
    holes = [f"{shard} before byte {end:,}" for shard, passed in shards.items() for end in passed.holes]
    names = [f"{shard}/{name}" for shard, passed in shards.items() for name in passed.names]
    found = []
    if holes:
        found.append(
            Unused.of(
                holes,
                "stretches of zeros inside of tar shards",
                "samples may have stood there, as after a download that lost a part; fetch these shards again",
            )
        )
    if names:
        told = Unused.of(
            names, "members of tar shards", "their names have no ending, so they make no sample", lost=False
        )
        found.append(replace(told, count=sum(passed.members for passed in shards.values())))
    return tuple(found)
