"""Keeps freed memory in the process.

glibc gives large blocks back to the system when they are freed. A training step frees and asks for the same large
tensors over and over, so every step the kernel zeroes all their pages again: a tenth to a third of a small step on a
CPU (docs/log.md, 2026-11-21). Linux with glibc only; elsewhere nothing happens.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BELOW = 1 << 30


def keep_freed_memory() -> bool:
    """Serves blocks up to 1 GiB from the heap and does not shrink it; returns whether that took effect."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _KEEP_BELOW - 1))
