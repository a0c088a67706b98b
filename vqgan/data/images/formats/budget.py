"""An encoded image in memory that counts what is read of it.

Pillow's parsers are loops over `read`. A directory whose entries all point at the same megabytes, or headers of a byte
each, make them endless: here they end.
"""

import io

from vqgan.data.images.formats.refused import RefusedImageError

_MOST_READS = 300_000
"""While a file is opened, not while it is decoded: some formats are decoded byte by byte."""
_TIMES, _MORE = 4, 1 << 24
"""All that is read is at most so many times the file, and 16 MB."""


class BudgetedFile(io.BytesIO):
    """Bytes as a file. Reading raises RefusedImageError when the budget is spent."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left: int | None = _MOST_READS
        self._bytes_left = _TIMES * len(data) + _MORE

    def opened(self) -> None:
        """From now on reads are not counted, only bytes."""
        self._reads_left = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self._reads_left is not None:
            self._reads_left -= 1
        content = super().read(size)
        self._bytes_left -= len(content)
        if self._bytes_left < 0 or (self._reads_left is not None and self._reads_left < 0):
            raise RefusedImageError("its header takes more steps to read than that of any image; save it again")
        return content
