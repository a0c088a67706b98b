"""Weights that are fetched on first use."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 20.0
"""Seconds to wait for an answer of a server that weights are fetched from."""


@contextmanager
def download_timeout() -> Iterator[None]:
    """Downloads give up on a server that does not answer; torch.hub would wait for as long as the system does."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
