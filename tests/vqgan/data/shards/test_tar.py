"""Tar archives as no writer makes them: ends that are none, holes, headers that lie. Each costs a bounded time."""

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vqgan.data.tiny_shards import encoded, shades, told, write_shard
from vqgan.data.shards.open_shards import open_shards
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.source import DataError, UnusableSample
from vqgan.data.unused import unused_in

SECONDS = 10.0
"""That any of these archives may take, on a slow and busy core; the worst takes a tenth of it."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path: Path, streaming: bool) -> Any:
    """All samples of a shard: of its splits the one that is told to hold everything."""
    config = ShardsConfig(path=str(path), val_paths=(str(other_shard(path.parent)),), streaming=streaming)
    return open_shards(config, "train")


def other_shard(folder: Path) -> Path:
    return write_shard(folder / "another" / "val.tar", shades([250]))


def read(source: Any) -> list[str]:
    """Captions, or what is unusable and why, in order."""
    if hasattr(source, "iterate"):
        return told(source.iterate())
    found = []
    for index in range(len(source)):
        try:
            found.append(str(source[index].caption))
        except UnusableSample as unusable:
            found.append(str(unusable))
    return found


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A block whose checksum is right, whatever it says."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:124] = b"0000644\0", b"0000000\0" * 2
    block[124:136], block[136:148] = size.ljust(12, b"\0"), b"0" * 11 + b"\0"
    block[156:157], block[257:265] = kind, b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, content: bytes, kind: bytes = b"0") -> bytes:
    return header(name, b"%011o" % len(content), kind) + content + bytes(-len(content) % 512)


def pax(*records: tuple[str, str]) -> bytes:
    """A pax header with these records, whatever they say."""
    content = b""
    for key, value in records:
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        content += str(length).encode() + body
    return member(b"pax", content, b"x")


def sample(number: int) -> bytes:
    return b"".join(member(name.encode(), content) for name, content in shades([number]))


END = bytes(1024)


@pytest.mark.parametrize("streaming", [False, True])
def test_archives_that_were_put_together_are_read_whole(tmp_path: Path, streaming: bool) -> None:
    parts = [write_shard(tmp_path / f"{n}.tar", shades(range(3 * n, 3 * n + 3))).read_bytes() for n in range(3)]
    path = tmp_path / "c.tar"
    path.write_bytes(b"".join(parts))
    source = opened(path, streaming)
    assert read(source) == [f"shade {number}" for number in range(9)]
    assert not unused_in(source), "an end mark between two archives is no loss"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("zeros", [512, 40 * 512], ids=["one block", "forty blocks"])
def test_a_hole_is_passed_over_and_told(tmp_path: Path, streaming: bool, zeros: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sample(1) + bytes(zeros) + sample(2) + END)
    source = opened(path, streaming)
    assert read(source) == ["shade 1", "shade 2"]
    (hole,) = unused_in(source)
    assert hole.lost
    assert f"a.tar before byte {len(sample(1)) + zeros:,}" in str(hole)
    if not streaming:  # from what was kept of the first look
        assert unused_in(opened(path, streaming)) == (hole,)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "behind", [b"signature", b"x" * 512, bytes(100) + b"x" * 4000], ids=["line", "block", "shifted"]
)
def test_what_stands_behind_the_end_and_is_no_archive_is_told(tmp_path: Path, streaming: bool, behind: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sample(1) + sample(2) + END + behind)
    first, second, rest = read(opened(path, streaming))
    assert [first, second] == ["shade 1", "shade 2"], "the last sample before the end is whole"
    assert rest.startswith("a.tar after sample 2: the rest of the shard is lost: from byte ")
    assert "behind an end mark, it is no archive" in rest


@pytest.mark.parametrize("streaming", [False, True])
def test_members_that_make_no_sample_are_told(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "a.tar"
    nameless = b"".join(member(b"folder/no%d" % number, b"?") for number in range(5))
    path.write_bytes(sample(1) + nameless + member(b".hidden", b"?") + END)
    source = opened(path, streaming)
    assert read(source) == ["shade 1"]
    assert str(*unused_in(source)).startswith("5 members of tar shards (a.tar/folder/no0, a.tar/folder/no1, ")


BACK = b"\xff" + (-512).to_bytes(11, "big", signed=True)
HUGE = b"\x80" + (1 << 70).to_bytes(11, "big")
LIES: dict[str, bytes] = {
    "a size that steps back": header(b"b.png", BACK),
    "a size of 2^70": header(b"b.png", HUGE),
    "a size beyond the end": header(b"b.png", b"77777777777"),
    "a folder with a size that steps back": header(b"b/", BACK, b"5"),
    "a link whose size steps back": header(b"b.png", BACK, b"2"),
    "100,000 headers for one member": member(b"long", b"name\0", b"L") * 100_000,
    "100,000 pax headers for one member": pax(("path", "b.png")) * 100_000,
    "a long name of 1 GB": header(b"long", b"%011o" % (1 << 30), b"L"),
    "a long name of 1 MB": member(b"long", b"n" * (1 << 20), b"L") + member(b"b.png", encoded(2)),
    "a negative pax size": pax(("size", "-512")) + member(b"b.png", encoded(2)),
    "a pax size of another script": pax(("size", "²")) + member(b"b.png", encoded(2)),
    "a pax size of 5,000 digits": pax(("size", "9" * 5000)) + member(b"b.png", encoded(2)),
    "a pax record of 5,000 digits": member(b"pax", b"9" * 5000 + b" a=b\n", b"x") + member(b"b.png", encoded(2)),
    "a pax record of length 0": member(b"pax", b"0 a=b\n", b"x") + member(b"b.png", encoded(2)),
    "100,000 members of one key": b"".join(member(b"b.e%d" % number, b"") for number in range(100_000)),
    "a sparse file": header(b"b.png", b"00000001000", b"S") + bytes(512),
    "a checksum of nothing": b"\0" * 148 + b"\xff" * 364,
}
"""What stands behind two good samples. The first of them is read, and a line says that the rest is lost."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_costs_the_rest_of_its_shard(tmp_path: Path, streaming: bool, lie: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sample(1) + sample(2) + LIES[lie] + sample(3) + END)
    began = time.perf_counter()
    first, *others, rest = read(opened(path, streaming))
    assert time.perf_counter() - began < SECONDS
    assert "\n" not in rest
    # Nobody knows whether all members of the sample before the break had come, so that one is lost too.
    assert first == "shade 1"
    assert others in ([], ["shade 2"])
    assert "the rest of the shard is lost" in rest


PAX_SPARSE = pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "b.png"))
HARMLESS: dict[str, tuple[bytes, Callable[[list[str]], bool]]] = {
    "a pax size of 0 before a member that says more": (
        pax(("size", "0")) + header(b"b.png", b"%011o" % 512),
        lambda found: "empty" in found[0],
    ),
    "a hard link with a size": (header(b"b.png", b"%011o" % 512, b"1"), lambda found: "a link or a device" in found[0]),
    "a volume label with content": (member(b"label", b"x" * 600, b"V"), lambda found: not found),
    "a pax sparse file": (
        PAX_SPARSE + member(b"GNUSparseFile.0/b.png", encoded(2)),
        lambda found: "sparse" in found[0],
    ),
    "a broken global header": (member(b"g", b"what?", b"g"), lambda found: not found),
    "a name of two lines and an escape": (member(b"b\n\x1b[2J.png", b""), lambda found: "\n" not in found[0]),
}
"""What costs at most itself: what is told of it."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("oddity", HARMLESS)
def test_an_odd_member_costs_itself_alone(tmp_path: Path, streaming: bool, oddity: str) -> None:
    content, is_told = HARMLESS[oddity]
    path = tmp_path / "a.tar"
    path.write_bytes(sample(1) + content + sample(2) + END)
    found = read(opened(path, streaming))
    assert found[0] == "shade 1"
    assert found[-1] == "shade 2"
    assert is_told(found[1:-1]), found


def test_an_endless_stretch_of_zeros_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sample(1) + END)
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse: it takes no room on the disk
    for streaming in (False, True):
        began = time.perf_counter()
        first, rest = read(opened(path, streaming))
        assert time.perf_counter() - began < SECONDS
        assert first == "shade 1"
        assert "more than 16,777,216 bytes of zeros" in rest


def test_long_names_take_memory_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for number in range(2000):
            name = f"{'long' * 1000 if number == 0 else ''}{number}.png"
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"?"))
    source = opened(path, streaming=False)
    assert len(source) == 2000
    (keys,) = source._keys
    assert len(keys._bytes) < 20_000, "a table as wide as the longest key has 8 MB"
    with pytest.raises(UnusableSample, match=r"^a\.tar/1999: "):
        source[1999]


@pytest.mark.parametrize("name", ["set [v2]", "a*b", "what?", "{train}", "{a,b}", "[!x]"])
def test_a_folder_that_is_called_like_a_pattern(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    write_shard(folder / "train-000.tar", shades([1]))
    write_shard(folder / "train-001.tar", shades([2]))
    for pattern in ("", "/train-{000..001}.tar", "/*.tar", "/train-00[01].tar", "/train-00?.tar", "/train-000.tar"):
        config = ShardsConfig(path=f"{folder}{pattern}", val_paths=(str(other_shard(tmp_path)),))
        assert len(open_shards(config, "train")) == (1 if pattern == "/train-000.tar" else 2), pattern  # type: ignore[arg-type]
    hidden = write_shard(folder / "._train-000.tar", shades([3]))
    assert hidden.exists()
    config = ShardsConfig(path=str(folder), val_paths=(str(other_shard(tmp_path)),))
    assert len(open_shards(config, "train")) == 2, "what a Mac leaves beside a file is no shard"  # type: ignore[arg-type]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for path in (tmp_path / "pipe.tar", Path("/dev/zero")):
        for streaming in (False, True):
            with pytest.raises(DataError, match="is a folder, a pipe or a device, not a tar file"):
                opened(path, streaming)
