"""Small folders of images, and what a folder source makes of them."""

import os
from pathlib import Path

from PIL import Image

from vqgan.data.source import DataError, UnusableSample
from vqgan.data.sources.folder import Folder, FolderConfig


def draw(path: Path, shade: int = 0) -> None:
    """An image of one shade; its format as the ending says, PNG where that is not known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    Image.new("RGB", (16, 16), (shade, shade, shade)).save(path, format=known)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def outcomes(root: Path, *splits: str, require_captions: bool = False) -> dict[str, str | None]:
    """Name -> caption, or why the item cannot be used; of both splits where none is named."""
    found: dict[str, str | None] = {}
    for split in splits or ("train", "val"):
        try:
            source = Folder(FolderConfig(path=str(root)), split, require_captions=require_captions)  # type: ignore[arg-type]
        except DataError as error:
            if "a single image" not in str(error):
                raise
            continue
        for index in range(len(source)):
            try:
                sample = source[index]
                assert sample.captions == source.captions(index)
                assert sample.name not in found
                found[sample.name] = sample.caption
            except UnusableSample as unusable:
                found[unusable.name] = unusable.cause
    return found


def told(root: Path) -> dict[str, tuple[int, bool]]:
    """What the folder says that it does not use -> how many, and whether it may be lost data."""
    each = [Folder(FolderConfig(path=str(root)), split).unused for split in ("train", "val")]  # type: ignore[arg-type]
    assert each[0] == each[1], "of its whole location, whatever the split"
    for unused in each[0]:
        assert "\n" not in str(unused)
        assert all(os.sep not in example[:1] for example in unused.examples)
    return {unused.what: (unused.count, unused.lost) for unused in each[0]}
