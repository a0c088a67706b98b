"""Reading tar archives by their headers alone, and WebDataset's convention for what in them makes a sample.

Nothing is extracted. Unlike `tarfile`, which takes a damaged header in mid-file for the archive's end, every end but
the proper one is an error here: half a shard must not pass for a whole one. An end mark (blocks of zeros) with another
header behind it is no end, as for `tar --ignore-zeros`: archives that were put together by `cat` are read whole.

Whatever the bytes are, every header takes the file forward by a block at least, and names, headers, sizes and stretches
of zeros are bounded: nothing is read twice, nothing recurses, nothing grows.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Generic, Protocol, TypeVar, runtime_checkable

from vqgan.data.shards.passed_over import PassedOver

T = TypeVar("T")

BLOCK = 512
_GZIP = b"\x1f\x8b"
_LARGEST_HEADER = 1 << 20
"""Long names and pax records above 1 MB are refused: no file name needs them."""
_LONGEST_NAME = 4096
"""Bytes of a name, as systems allow a path."""
_MOST_ANNOUNCEMENTS = 16
"""Headers in a row that announce the next member: one for its name, one for its link, two of pax are usual."""
_MOST_DIGITS = 20
"""Of a number in a pax header; 2^64 has twenty."""
_RECORD = 20 * BLOCK
"""Archives are filled up to a multiple of this, unless the writer was configured otherwise."""
_LONGEST_END_MARK = 1 << 24
"""Bytes of zeros that are read in search of another header: 16 MB. `tar` itself writes at most 1 MB."""
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
"""Types of members (links, devices, folders, pipes) that have none, whatever size their header gives."""
_MOST_PARTS = 256
"""Members of one sample: more are not a sample but names with a dot too early (`photo.0001.jpg`), or an attack."""
_SAMPLE_NAME = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
"""Key and ending, as WebDataset has them: the ending begins at the first dot of the file's name."""


class BrokenTarError(Exception):
    """An archive that cannot be read from some place on; the message is the cause."""


class HostileTarError(BrokenTarError):
    """An archive with a header that no writer makes."""


class BehindTheEndError(BrokenTarError):
    """What stands behind an archive's end mark is no archive; all before it was read."""


@runtime_checkable
class ForwardFile(Protocol):
    """A file that is read from front to back."""

    position: int

    def read(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer only at the end."""
        ...

    def skip(self, count: int) -> int:
        """Skips `count` bytes; returns how many there were."""
        ...


@dataclass(frozen=True)
class Member:
    """A member's name, where its content lies, and what it is instead of a plain file, where it is none."""

    name: str
    offset: int
    size: int
    instead: str = ""


@dataclass
class Group(Generic[T]):
    """The members of one sample by ending; `refused` says why it may not be used."""

    key: str
    parts: dict[str, T] = field(default_factory=dict)
    refused: str | None = None


@dataclass
class _Announced:
    """What headers say of the member that follows them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False
    headers: int = 0


def members(file: ForwardFile, passed: PassedOver | None = None) -> Iterator[Member]:
    """Yields the members from the file's position on, without folders; at each, the file stands at the member's
    content.

    Stretches of zeros that are no end mark are added to what is `passed` over. Raises BrokenTarError at whatever is not
    an archive, or where it is cut off; BehindTheEndError where its end mark has something else behind it.
    """
    passed = PassedOver() if passed is None else passed
    announced = _Announced()
    while (header := _next_header(file, passed)) is not None:
        at = file.position - BLOCK
        info = _parsed(header, at)
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            _read_announcement(file, info, announced)
            continue
        size = info.size if announced.size is None else announced.size
        name = _checked_name(announced.name or info.name, at)
        content_size = 0 if info.type in _WITHOUT_CONTENT else size
        member = Member(name, file.position, content_size, _instead_of_a_file(info, announced))
        announced = _Announced()
        if not info.isdir():
            yield member
        _to(file, member.offset, member.size, f"{member.name!r:.80}")


def _next_header(file: ForwardFile, passed: PassedOver) -> bytes | None:
    """Returns the next header's block, None at the end of the archive. Zeros before it are skipped."""
    zeros = 0
    while True:
        block = file.read(BLOCK)
        if not any(block):
            if len(block) < BLOCK:
                if not zeros:
                    raise BrokenTarError("it ends without an archive's end mark: cut off, or its writer was not closed")
                return None
            zeros += BLOCK
            if zeros > _LONGEST_END_MARK:
                raise BehindTheEndError(
                    f"more than {_LONGEST_END_MARK:,} bytes of zeros up to byte {file.position}: a file with a hole, "
                    "or one that was never filled; what is behind them is not read"
                )
            continue
        if zeros and not _is_header(block):
            at = file.position - len(block)
            raise BehindTheEndError(f"from byte {at} on, behind an end mark, it is no archive; that is not used")
        if file.position == len(block) and block.startswith(_GZIP):
            raise BrokenTarError("it is compressed: unpack it with gunzip")
        if len(block) < BLOCK:
            raise BrokenTarError(f"cut off in a header at byte {file.position}")
        if zeros and not _is_end_mark(zeros):
            passed.add_hole(file.position - BLOCK)
        return block


def _is_end_mark(zeros: int) -> bool:
    """Returns whether so many zeros are what writers put there: two blocks, and more until a record is full."""
    return 2 * BLOCK <= zeros < 2 * BLOCK + _RECORD


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK:
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _read_announcement(file: ForwardFile, info: tarfile.TarInfo, announced: _Announced) -> None:
    """Take up what a header of a long name or of pax records says of the member that follows."""
    start = file.position
    announced.headers += 1
    if info.size > _LARGEST_HEADER:
        raise HostileTarError(f"a header of {info.size:,} bytes at byte {start}")
    if announced.headers > _MOST_ANNOUNCEMENTS:
        raise HostileTarError(f"more than {_MOST_ANNOUNCEMENTS} headers for one member at byte {start}")
    content = file.read(info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        announced.name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif info.type == tarfile.XHDTYPE and len(content) == info.size:
        records = _pax_records(content)
        announced.name = records.get("GNU.sparse.name") or records.get("path", announced.name)
        announced.size = _number(records["size"]) if "size" in records else announced.size
        announced.is_sparse |= any(key.startswith("GNU.sparse.") for key in records)
    _to(file, start, info.size, "a header")


def groups(
    archive: Iterator[Member],
    wanted: Callable[[str], bool],
    take: Callable[[str, Member], T],
    passed: PassedOver | None = None,
) -> Iterator[Group[T]]:
    """Yields the samples of an archive: neighboring members of one key, of those keys that are `wanted`.

    `take(ending, member)` is called at each of their members, while the file stands there. A sample of which a member
    leads out of its folder, or is no file, is refused. Members without a key or an ending are `passed` over.
    """
    group: Group[T] | None = None
    endings: set[str] = set()
    is_wanted = False
    behind_the_end = None
    while True:
        try:
            member = next(archive, None)
        except BehindTheEndError as error:  # the last sample is whole
            member, behind_the_end = None, error
        if member is None:
            break
        match = _SAMPLE_NAME.match(member.name)
        if match is None:
            if passed is not None:
                passed.add_member(member.name)
            continue
        key, ending = match[1].removeprefix("./"), match[2].lower()
        if group is None or key != group.key or ending in endings:
            if group is not None and is_wanted:
                yield group
            group, endings, is_wanted = Group(key), set(), wanted(key)
        endings.add(ending)
        if len(endings) > _MOST_PARTS:
            raise HostileTarError(
                f"more than {_MOST_PARTS:,} members of one sample, {key!r:.80}: a sample's name ends at the first dot"
            )
        if not is_wanted:
            continue
        if _leads_out(member.name):
            group.refused = f"refused: {member.name!r:.80} leads out of the data set's folder"
        elif member.instead:
            group.refused = f"refused: {member.name!r:.80} is {member.instead}"
        else:
            group.parts[ending] = take(ending, member)
    if group is not None and is_wanted:
        yield group
    if behind_the_end is not None:
        raise behind_the_end


def _parsed(header: bytes, at: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise BrokenTarError(f"no valid tar header at byte {at}: {error}") from None
    if info.size < 0 or info.size >= 1 << 63:
        raise HostileTarError(f"a header at byte {at} with a size that no file has")
    if info.type == tarfile.GNUTYPE_SPARSE:
        raise BrokenTarError(f"a sparse file at byte {at}: write the archive without --sparse")
    return info


def _instead_of_a_file(info: tarfile.TarInfo, announced: _Announced) -> str:
    if announced.is_sparse:
        return "a sparse file: write the archive without --sparse"
    is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
    return "" if is_file else "a link or a device, not a file"


def _checked_name(name: str, at: int) -> str:
    if len(name) > _LONGEST_NAME:
        raise HostileTarError(f"a name of {len(name):,} characters at byte {at}, the limit is {_LONGEST_NAME:,}")
    return name


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS and int(digits) < 1 << 63):
        raise HostileTarError(f"a pax header with a size that is no number: {digits!r:.40}")
    return int(digits)


def _to(file: ForwardFile, start: int, size: int, what: str) -> None:
    """Go to the header after a content of `size` bytes at `start`; `what` it is, for the message where it is cut."""
    distance = start + -(-size // BLOCK) * BLOCK - file.position
    if file.skip(distance) < distance:
        raise BrokenTarError(f"cut off in {what} at byte {file.position}")


def _pax_records(content: bytes) -> dict[str, str]:
    """Records `length key=value` and a line feed each."""
    records = {}
    start = 0
    while start < len(content):
        space = content.find(b" ", start, start + _MOST_DIGITS)
        digits = content[start:space] if space > 0 else b""
        end = start + (int(digits) if digits.isdigit() else 0)
        key, equals, value = content[space + 1 : end].partition(b"=")
        if not equals or end > len(content):
            raise BrokenTarError("a pax header that cannot be read")
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        start = end
    return records


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name
