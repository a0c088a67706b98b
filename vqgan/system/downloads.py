"""Downloads of weights on first use."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 20.0
"""Seconds to wait for a server's answer."""


@contextmanager
def download_timeout() -> Iterator[None]:
    """Context with a timeout for downloads; torch.hub has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
