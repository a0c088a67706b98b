"""Files that are read from front to back, local or behind an address, with patience that ends.

A connection that breaks, stalls, crawls or is answered with a passing error is opened again at the byte where it
broke (Range), a bounded number of times without progress, at growing intervals; the first time, standard error says
so. Everything else, and the last try, is a RemoteError. What other addresses than http(s) need (s3://, gs://, hf://)
is opened by fsspec.
"""

import functools
import os
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from vqgan.data.source import printable
from vqgan.system.bounded_file import open_regular

_CHUNK = 1 << 18
_PROGRESS = 1 << 20
"""Bytes after which a broken connection counts as a new one."""
_SLOWEST = 1024
"""Bytes per second below which a connection counts as stalled."""
_LONGEST_PAUSE = 30.0
_PASSING = (408, 425, 429)
"""Answers that may be another one later, as every 5xx may."""


class RemoteError(Exception):
    """A file that cannot be read from some place on; the message is the cause."""


class LocalFile:
    """A local file from front to back. Raises RemoteError where it cannot be read."""

    def __init__(self, path: str) -> None:
        try:
            self._file = open_regular(path)  # closed by __exit__
            self.size = self._file.seek(0, 2)
            self._file.seek(0)
        except OSError as error:
            raise RemoteError(f"cannot be read: {error.strerror}") from None
        self.position = 0
        status = os.fstat(self._file.fileno())
        self.version_key = f"{status.st_size} {status.st_mtime_ns}"
        """Identifies this version of the content; empty if unknown."""

    def __enter__(self) -> "LocalFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer only at the end."""
        try:
            content = self._file.read(min(count, self.size - self.position))
        except OSError as error:
            raise RemoteError(f"cannot be read at byte {self.position}: {error.strerror}") from None
        self.position += len(content)
        return content

    def skip(self, count: int) -> int:
        """Skips `count` bytes; returns how many there were."""
        count = min(count, self.size - self.position)
        self.position = self._file.seek(self.position + count)
        return count


class RemoteFile:
    """A file behind an address from front to back. Reading raises RemoteError when patience is at its end."""

    def __init__(self, address: str, retries: int, timeout: float) -> None:
        """At most `retries` new tries without progress; `timeout` seconds without an answer or data break a try."""
        self._address = address
        self._retries = retries
        self._timeout = timeout
        self._identity: tuple[str, int | None] = ("", None)
        self._chunks = self._patient_chunks()
        self._ahead = memoryview(b"")
        self.position = 0

    def __enter__(self) -> "RemoteFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.close()

    def read(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer only at the end."""
        content = bytearray()
        while len(content) < count and (piece := self._next(count - len(content))):
            content += piece
        return bytes(content)

    def skip(self, count: int) -> int:
        """Skips `count` bytes; returns how many there were."""
        passed = 0
        while passed < count and (piece := self._next(count - passed)):
            passed += len(piece)
        return passed

    @property
    def version_key(self) -> str:
        """Identifies this version of the content; empty if unknown. Asks the server for the file."""
        if self._identity == ("", None):
            self._fill()
        tag, total = self._identity
        return f"{tag} {total}" if total is not None else ""

    def _next(self, most: int) -> memoryview:
        self._fill()
        piece, self._ahead = self._ahead[:most], self._ahead[most:]
        self.position += len(piece)
        return piece

    def _fill(self) -> None:
        """Have something to read, where there is something."""
        while not self._ahead and (chunk := next(self._chunks, None)) is not None:
            self._ahead = memoryview(chunk)

    def _patient_chunks(self) -> Any:
        """Yields the file's content, chunk by chunk, over as many connections as it takes."""
        offset, failures, last_failure, said = 0, 0, 0, False
        while True:
            try:
                for chunk in self._connection(offset):
                    offset += len(chunk)
                    yield chunk
                return
            except RemoteError:
                raise
            except Exception as error:  # every protocol raises its own kinds
                cause = " ".join(str(error).split())[:200] or type(error).__name__
            failures = 1 if offset - last_failure >= _PROGRESS else failures + 1
            last_failure = offset if failures == 1 else last_failure
            if failures > self._retries:
                raise RemoteError(f"{cause}, at byte {offset}, given up after {failures} tries")
            if not said:  # once a file: who waits should know for what, and a bad line is no flood of them
                said = True
                tries = f"try {failures + 1} of {self._retries + 1}"
                tqdm.write(printable(f"waiting for {self._host} ({cause}), {tries}"), file=sys.stderr)
            time.sleep(min(_LONGEST_PAUSE, 0.5 * 2 ** (failures - 1)))

    @property
    def _host(self) -> str:
        """Host or bucket, without the name and password that an address may hold."""
        return urlsplit(self._address).netloc.rpartition("@")[2] or self._address

    def _connection(self, offset: int) -> Iterator[bytes]:
        return self._http(offset) if self._address.startswith(("http://", "https://")) else self._fsspec(offset)

    def _http(self, offset: int) -> Iterator[bytes]:
        import httpx

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        settings: dict[str, Any] = {"timeout": self._timeout, "follow_redirects": True, "verify": _certificates()}
        with httpx.stream("GET", self._address, headers=headers, **settings) as response:
            status = response.status_code
            if status in _PASSING or status >= 500:
                raise OSError(f"the server answers {status} {response.reason_phrase}")
            if status >= 400:
                raise RemoteError(f"the server answers {status} {response.reason_phrase}")
            length = response.headers.get("content-length")
            begin = offset if status == 206 else 0  # a server that knows no Range begins anew
            total = begin + int(length) if length else None
            self._check_identity(response.headers.get("etag") or response.headers.get("last-modified") or "", total)
            received, to_drop = begin, offset - begin
            for chunk in self._not_crawling(response.iter_raw()):
                received += len(chunk)
                if to_drop < len(chunk):
                    yield chunk[to_drop:]
                to_drop = max(0, to_drop - len(chunk))
            if total is not None and received < total:
                raise OSError(f"the connection ended {total - received} bytes early")

    def _not_crawling(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yields the same chunks, as they come. Only the time that is waited for them counts, not what is done with
        them."""
        waited, received = 0.0, 0
        while True:
            began = time.monotonic()
            chunk = next(chunks, None)
            if chunk is None:
                return
            waited += time.monotonic() - began
            received += len(chunk)
            if waited > self._timeout:
                if received < _SLOWEST * self._timeout:
                    raise OSError(f"the server sends {received} bytes in {self._timeout:g} s")
                waited, received = 0.0, 0
            yield chunk

    def _fsspec(self, offset: int) -> Iterator[bytes]:
        import fsspec  # type: ignore[import-untyped]

        try:
            opened = fsspec.open(self._address, "rb")
            file = opened.open()
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
            raise RemoteError(f"cannot be opened: {error}") from None
        with file:
            self._check_identity("", getattr(file, "size", None))
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                yield chunk

    def _check_identity(self, tag: str, total: int | None) -> None:
        old_tag, old_total = self._identity
        if (tag and old_tag and tag != old_tag) or (total and old_total and total != old_total):
            raise RemoteError("it changed on the server while it was read")
        self._identity = (tag or old_tag, total or old_total)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a small request."""
    import httpx

    return httpx.create_ssl_context()
