"""What a data source is: numbered samples, each an RGB image with, perhaps, a caption."""

import re
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from vqgan.errors import UserError

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Sample:
    """One image (mode RGB, any size) with its caption and the name by which reports call it.

    Where training shows one of several captions at random, `captions` holds them all; `caption` is the first.
    """

    image: Image.Image
    caption: str | None
    name: str
    captions: tuple[str, ...] = ()


def is_encodable(text: str) -> bool:
    """Returns whether text can be printed, stored and tokenized: half of a surrogate pair, which JSON may hold,
    cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb]"
)
"""What steers a terminal or the direction of a line, ends a line, cannot be seen, or is half a character."""


def printable(text: str, keep: str = "") -> str:
    """Returns the same text on one line, for a terminal or a file: what would steer it is written as an escape.

    That is control characters and ANSI sequences, line ends, marks that turn the direction of writing, and what is no
    character (a file name that is not UTF-8). Those in `keep`, such as a line feed, stay.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(character)
    return short.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


class UnusableSample(Exception):
    """An item that cannot be trained on. The loader skips, counts and reports it; it never ends a run."""

    def __init__(self, name: str, cause: str) -> None:
        name, cause = printable(name), printable(cause)
        super().__init__(name, cause)  # both in args, so that it survives pickling between processes
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}"

    def report(self) -> "UnusableSample":
        """Returns the error without its traceback, for storing.

        A traceback holds the calls that it went through with half a decoded image in them, often in a circle that
        Python's collector, which counts objects and not megabytes, comes across much later.
        """
        return UnusableSample(self.name, self.cause)


class DataError(UserError, ValueError):
    """A data set that cannot be used at all: missing, empty, or without the captions that a run needs."""


@runtime_checkable
class Source(Protocol):
    """A finite, indexable set of samples; the same index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Returns the sample at `index`. Raises UnusableSample when the item is broken."""
        ...
