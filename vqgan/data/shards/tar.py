"""Reading tar archives by their headers alone, and WebDataset's convention for what in them makes a sample.

Nothing is extracted. Unlike `tarfile`, which takes a damaged header in mid-file for the archive's end, every end but
the proper one is an error here: half a shard must not pass for a whole one.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

BLOCK = 512
_GZIP = b"\x1f\x8b"
_LARGEST_HEADER = 1 << 20
"""Long names and pax records above 1 MB are refused: no file name needs them."""
_SAMPLE_NAME = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
"""Key and ending, as WebDataset has them: the ending begins at the first dot of the file's name."""


class BrokenTarError(Exception):
    """An archive that cannot be read from some place on; the message is the cause."""


@runtime_checkable
class ForwardFile(Protocol):
    """A file that is read from front to back."""

    position: int

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end."""
        ...

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; how many there were."""
        ...


@dataclass(frozen=True)
class Member:
    """A member's name and where its content lies; `is_file` is false for links and devices."""

    name: str
    offset: int
    size: int
    is_file: bool


@dataclass
class Group(Generic[T]):
    """The members of one sample by ending; `refused` says why it may not be used."""

    key: str
    parts: dict[str, T] = field(default_factory=dict)
    refused: str | None = None


def members(file: ForwardFile) -> Iterator[Member]:
    """The members from the file's position on, without folders; at each, the file stands at the member's content.

    Raises BrokenTarError at whatever is not an archive, or where it is cut off.
    """
    name, size = None, None  # from the headers that announce the next one
    while True:
        header = file.read(BLOCK)
        if not header:
            raise BrokenTarError("it ends without an archive's end mark: cut off, or its writer was not closed")
        if file.position == len(header) and header.startswith(_GZIP):
            raise BrokenTarError("it is compressed: unpack it with gunzip")
        if len(header) < BLOCK:
            raise BrokenTarError(f"cut off in a header at byte {file.position}")
        if not any(header):
            return
        info = _parsed(header, file.position - BLOCK)
        start = file.position
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            if info.size > _LARGEST_HEADER:
                raise BrokenTarError(f"a header of {info.size:,} bytes at byte {start}")
            content = file.read(info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == tarfile.XHDTYPE:
                records = _pax_records(content)
                name, size = records.get("path", name), int(records.get("size", -1))
                size = None if size < 0 else size
            _to(file, start, info.size, "a header")
            continue
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        member = Member(name or info.name, start, (size or info.size) if is_file else 0, is_file)
        name, size = None, None
        if not info.isdir():
            yield member
        _to(file, start, member.size, f"{member.name!r:.80}")


def groups(
    archive: Iterator[Member], wanted: Callable[[str], bool], take: Callable[[str, Member], T]
) -> Iterator[Group[T]]:
    """The samples of an archive: neighbouring members of one key, of those keys that are `wanted`.

    `take(ending, member)` is called at each of their members, while the file stands there. A sample of which a member
    leads out of its folder, or is no file, is refused. Members without a key or an ending are passed over.
    """
    group: Group[T] | None = None
    endings: set[str] = set()
    is_wanted = False
    for member in archive:
        match = _SAMPLE_NAME.match(member.name)
        if match is None:
            continue
        key, ending = match[1].removeprefix("./"), match[2].lower()
        if group is None or key != group.key or ending in endings:
            if group is not None and is_wanted:
                yield group
            group, endings, is_wanted = Group(key), set(), wanted(key)
        endings.add(ending)
        if not is_wanted:
            continue
        if _leads_out(member.name):
            group.refused = f"refused: {member.name!r:.80} leads out of the data set's folder"
        elif not member.is_file:
            group.refused = f"refused: {member.name!r:.80} is a link or a device, not a file"
        else:
            group.parts[ending] = take(ending, member)
    if group is not None and is_wanted:
        yield group


def _parsed(header: bytes, at: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BrokenTarError(f"no valid tar header at byte {at}: {error}") from None
    if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
        raise BrokenTarError(f"a header at byte {at} that has no meaning here (size {info.size}, type {info.type!r})")
    return info


def _to(file: ForwardFile, start: int, size: int, what: str) -> None:
    """Go to the header after a content of `size` bytes at `start`; `what` it is, for the message where it is cut."""
    distance = start + -(-size // BLOCK) * BLOCK - file.position
    if file.skip(distance) < distance:
        raise BrokenTarError(f"cut off in {what} at byte {file.position}")


def _pax_records(content: bytes) -> dict[str, str]:
    """Records `length key=value` and a line feed each."""
    records = {}
    while content:
        digits, _, rest = content.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = rest[: max(0, length - len(digits) - 1)].partition(b"=")
        if not equals or length > len(content):
            raise BrokenTarError("a pax header that cannot be read")
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        content = content[length:]
    if not records.get("size", "0").isdigit():
        raise BrokenTarError("a pax header with a size that is no number")
    return records


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name
