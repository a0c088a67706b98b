"""Detects that the parent process has ended."""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def signal_when_parent_ends(number: int) -> None:
    """Makes Linux send this signal when the parent ends; 0: none. Does nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def has_launcher() -> bool:
    """Returns whether the parent is `torchrun` or `accelerate launch`, by their environment variables, and not a
    shell."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
