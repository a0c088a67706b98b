"""What commands end with: the table in docs/commands.md."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a command."""

    DONE = 0
    """Done; nothing is wrong."""
    ANSWER_IS_NO = 1
    """Done: a plan does not fit, a data set has problems."""
    USER_ERROR = 2
    """A mistake that a person can mend, told in one line."""
    INTERRUPTED = 75
    """Interrupted, and everything is saved: the same command goes on (EX_TEMPFAIL)."""
    INTERRUPTED_AT_ONCE = 130
    """Interrupted while there was nothing to save: what a shell gives for a process that Ctrl-C ended."""
