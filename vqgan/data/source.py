"""What a data source is: numbered samples, each an RGB picture with, perhaps, a caption."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Sample:
    """One picture (mode RGB, any size) with its caption and the name by which reports call it."""

    image: Image.Image
    caption: str | None
    name: str


class UnusableSample(Exception):
    """An item that cannot be trained on. The loader skips, counts and reports it; it never ends a run."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(name, cause)  # both in args, so that it survives pickling between processes
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}"


class DataError(ValueError):
    """A data set that cannot be used at all: missing, empty, or without the captions that a run needs."""


@runtime_checkable
class Source(Protocol):
    """A finite, indexable set of samples; the same index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`. Raises UnusableSample when the item is broken."""
        ...
