"""What lay in a data set's location and is not used: files of another format, linked folders, rows of no file.

An item on a source's list is never lost silently: the loader names what it skips. This is about what never gets on the
list. A source says it by an attribute `unused`, a tuple of `Unused`, of its whole location rather than of one split;
a source without the attribute passes nothing over. What anyone expects beside images (metadata, captions of images,
hidden files, a README) is not reported, so that reports are worth reading.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vqgan.data.source import printable

EXAMPLES = 3
"""Number of names stored for each kind."""
LINES = 12
"""Kinds that are printed; the JSON report of a check has all."""


@dataclass(frozen=True)
class Unused:
    """One kind of thing that is not used, for one reason."""

    count: int
    """How many there are."""
    what: str
    """What they are, in the plural: `files ending in .heic`."""
    reason: str
    """Why they are not used, and what to do if they should be."""
    examples: tuple[str, ...] = ()
    """Names of the first few, relative to the data set; printable."""
    lost: bool = True
    """Whether it may be data that was meant to be used: a problem for a check, which only reports other things."""

    @classmethod
    def of(cls, names: Sequence[str], what: str, reason: str, *, lost: bool = True) -> "Unused":
        """All that are called `names`; `what` and `reason` may hold text from the data set."""
        examples = tuple(printable(name) for name in names[:EXAMPLES])
        return cls(len(names), printable(what), printable(reason), examples, lost)

    def within(self, name: str) -> "Unused":
        """Returns the same in the data set `name` of a mixture."""
        return replace(self, examples=tuple(f"{name}: {example}" for example in self.examples))

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        names = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count:,} {self.what}{names}: {self.reason}"


def unused_in(*sources: Any) -> tuple[Unused, ...]:
    """Returns what sources skip, once if several (the splits of a data set) report the same; what may be lost
    first.

    To be asked for when it is needed: a stream learns of it while it is read.
    """
    found = dict.fromkeys(unused for source in sources for unused in getattr(source, "unused", ()))
    return tuple(sorted(found, key=lambda unused: not unused.lost))


def unused_lines(found: Iterable[Unused]) -> list[str]:
    """Returns a line for each kind: the one way in which a run, a check and a code cache print it."""
    lines = [f"not used: {unused}" for unused in found]
    more = len(lines) - LINES
    return [*lines[:LINES], f"not used: {more:,} more kinds of things"] if more > 0 else lines
