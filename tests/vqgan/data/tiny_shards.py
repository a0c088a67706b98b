"""Tiny tar shards for the tests: images of one shade whose captions say which."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from vqgan.data.source import UnusableSample
from vqgan.data.stream import EncodedSample

Content = Iterable[tuple[str, bytes]]


def encoded(shade: int, size: int = 4) -> bytes:
    """An image of one shade as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def shades(numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    """Members of one sample a number."""
    return [
        member
        for number in numbers
        for member in ((f"{number:05d}.png", encoded(number)), (f"{number:05d}.txt", f"shade {number}".encode()))
    ]


def write_shard(path: Path, content: Content, form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def write_shades(folder: Path, shards: int, each: int) -> str:
    """Shards of `each` samples, numbered through; what names them with braces."""
    for shard in range(shards):
        write_shard(folder / f"train-{shard:03d}.tar", shades(range(shard * each, (shard + 1) * each)))
    return str(folder / f"train-{{000..{shards - 1:03d}}}.tar")


def told(items: Iterator[EncodedSample]) -> list[str]:
    """The captions of items, or the names of what is unusable and why."""
    found = []
    for item in items:
        try:
            found.append(str(item.load().caption))
        except UnusableSample as unusable:
            found.append(str(unusable))
    return found


def names(numbers: Iterable[int]) -> list[str]:
    """The captions of these shades, sorted."""
    return sorted(f"shade {number}" for number in numbers)
