"""Standard output and standard error that can print any text, whatever the terminal's encoding."""

import functools
import io
import sys
from collections.abc import Callable

Main = Callable[[list[str]], int]


def command(main: Main) -> Main:
    """Runs `main(argv)` of a tool without UnicodeEncodeErrors.

    Captions and file names are in any language, and names on a disk need not even be text. A container, a scheduler or
    a Windows console may take ASCII or cp1252 alone: what they cannot show is then written as an escape (`\\xfc`).
    """

    @functools.wraps(main)
    def run(argv: list[str]) -> int:
        for stream in (sys.stdout, sys.stderr):
            show_anything(stream)
        return main(argv)

    return run


def show_anything(stream: object) -> None:
    """Makes a stream write characters outside its encoding as escapes, if it is one of Python's own."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
