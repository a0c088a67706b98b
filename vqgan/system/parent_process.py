"""A process whose parent ends goes on by itself; here is how it may notice."""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def signal_when_parent_ends(number: int) -> None:
    """From now on Linux sends this signal when the parent ends, by whatever way; 0: none. Elsewhere: nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def has_launcher() -> bool:
    """Returns whether the parent is `torchrun` or `accelerate launch`, which set these, and not a shell that may go."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
