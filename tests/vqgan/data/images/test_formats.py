"""Malformed images and captions through the whole loader: no crash, no hang, flat memory, every skip counted."""

import gc
import io
import math
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.vqgan.data.images.malformed import malformed_caption, malformed_image, well_formed
from vqgan.data.images.decode import decode_image
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import UnusableSample
from vqgan.data.sources.folder import Folder, FolderConfig

ENDINGS = (".jpg", ".png", ".tif", ".webp", ".bmp", ".gif")
SLOWEST_ITEM = 20.0
"""Seconds that any item may take, on a slow and busy core."""


def folder_of(count: int, seed: int, place: Path) -> tuple[dict[str, Any], set[str]]:
    names = set()
    for number in range(count):
        name = f"{number:05d}{ENDINGS[number % len(ENDINGS)]}"
        (place / name).write_bytes(malformed_image(seed, number))
        (place / name).with_suffix(".txt").write_bytes(malformed_caption(seed, number))
        names.add(name)
    return {"kind": "folder", "path": str(place), "val_fraction": 1e-9}, names


def parquet_of(count: int, seed: int, place: Path) -> tuple[dict[str, Any], set[str]]:
    images = pa.array([{"bytes": malformed_image(seed, number), "path": None} for number in range(count)])
    captions = [malformed_caption(seed, number) for number in range(count)]
    offsets = [0]
    for caption in captions:
        offsets.append(offsets[-1] + len(caption))
    # As a careless writer leaves them: what calls itself a string need not be UTF-8.
    buffers = [pa.py_buffer(b"".join(bytes(part.to_bytes(4, "little")) for part in offsets)), b"".join(captions)]
    texts = pa.StringArray.from_buffers(count, buffers[0], pa.py_buffer(buffers[1]))
    pq.write_table(pa.table({"image": images, "text": texts}), place / "items.parquet", row_group_size=100)
    name = str(place / "items.parquet")
    source = {"kind": "dataset", "name": name, "val_fraction": 1e-9}
    return source, {f"{name} row {number}" for number in range(count)}


def tar_of(count: int, seed: int, place: Path) -> tuple[dict[str, Any], set[str]]:
    with tarfile.open(place / "items.tar", "w") as tar:
        for number in range(count):
            for ending, data in (("jpg", malformed_image(seed, number)), ("txt", malformed_caption(seed, number))):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = {"kind": "shards", "path": str(place / "items.tar"), "val_fraction": 1e-9}
    return source, {f"items.tar/{number:05d}" for number in range(count)}


FORMS = (folder_of, parquet_of, tar_of)


def one_epoch(source: dict[str, Any], count: int) -> Iterator[Any]:
    """Every item of the training split at its place, in batches that divide their number."""
    size = math.gcd(count, 20)
    transform = {"image_size": 16, "crop": "dalle_transformer", "flip": True}
    config = DataConfig.model_validate({"source": source, "transform": transform, "batch_size": size})
    pipeline = DataPipeline(config, seed=0, require_captions=True)
    for gradient_accumulation_steps in pipeline.training_batches(0, count // size, BatchShard()):
        yield gradient_accumulation_steps[0]


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def check(
    write: Callable[[int, int, Path], tuple[dict[str, Any], set[str]]], count: int, seed: int, place: Path
) -> tuple[int, int, float]:
    """Usable items, unusable ones, and megabytes that the second half of the epoch left behind."""
    source, names = write(count + 1, seed, place)  # one is held out
    shown: set[str] = set()
    skipped: dict[str, str] = {}
    memory = []
    before = time.perf_counter()
    for batch in one_epoch(source, count):
        now = time.perf_counter()
        assert now - before < SLOWEST_ITEM * (1 + len(batch.skipped)), batch.skipped
        before = now
        assert batch.images.shape == (len(batch), 3, 16, 16)
        assert torch.isfinite(batch.images).all()
        for caption in batch.captions:
            assert caption.strip()
            caption.encode("utf-8")
        for unusable in batch.skipped:
            str(unusable).encode("utf-8")
            assert unusable.cause.strip()
            assert "\n" not in unusable.cause
            skipped[unusable.name] = unusable.cause
        shown.update(batch.names)
        memory.append(resident_megabytes())
    assert not shown & set(skipped)
    assert len(names - shown - set(skipped)) == 1, "all but the validation item were shown or counted"
    return len(shown), len(skipped), memory[-1] - memory[len(memory) // 2]


@pytest.mark.parametrize("write", FORMS)
def test_100_malformed_items(
    write: Callable[[int, int, Path], tuple[dict[str, Any], set[str]]], tmp_path: Path
) -> None:
    usable, unusable, _ = check(write, 100, FORMS.index(write), tmp_path)
    assert usable > 10
    assert unusable > 40


@pytest.mark.parametrize("write", FORMS)
def test_a_skipped_image_is_freed_at_once(
    write: Callable[[int, int, Path], tuple[dict[str, Any], set[str]]], tmp_path: Path
) -> None:
    """Not in a circle of traceback and frame, which Python's collector finds gigabytes later."""

    def images() -> int:
        return sum(issubclass(type(thing), Image.Image) for thing in gc.get_objects())

    source, _ = write(21, 1, tmp_path)
    gc.collect()
    before = images()
    gc.disable()
    try:
        skipped = [unusable for batch in one_epoch(source, 20) for unusable in batch.skipped]
        assert len(skipped) > 5
        assert images() == before
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMS)
def test_10_000_malformed_items(
    write: Callable[[int, int, Path], tuple[dict[str, Any], set[str]]], tmp_path: Path
) -> None:
    usable, unusable, left_behind = check(write, 10_000, 1, tmp_path)
    assert usable > 1000
    assert unusable > 5000
    assert left_behind < 100


def test_half_characters_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Whatever comes out can be printed: a run ends when it cannot print its report."""
    image = well_formed()[0]
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in (b"good.jpg", b"caf\xe9.jpg", b"broken\xff.jpg"):
        (odd / os.fsdecode(name)).write_bytes(image if b"broken" not in name else b"no image")
    listed = tmp_path / "listed"
    listed.mkdir()
    rows = [("a.jpg", "\\ud83d"), ("\\ud83d.jpg", "text"), ("b.jpg", "\\ud83d\\ude00 text"), ("c.jpg", "\\u0000 text")]
    lines = [f'{{"file_name": "{name}", "text": "{text}"}}\n' for name, text in rows]
    (listed / "metadata.jsonl").write_text("".join(lines))
    for name in "abc":
        (listed / f"{name}.jpg").write_bytes(image)
    seen = []
    for folder, captioned in ((odd, False), (listed, True)):
        source = Folder(FolderConfig(path=str(folder), val_fraction=1e-9), "train", require_captions=captioned)
        for index in range(len(source)):
            try:
                sample = source[index]
                seen.append(f"{sample.name} {sample.caption}")
            except UnusableSample as unusable:
                seen.append(str(unusable))
    assert len(seen) == 2 + 3, "one of each is held out"
    for text in seen:
        text.encode()


def test_what_the_damage_starts_from_is_whole() -> None:
    for number, data in enumerate(well_formed()):
        assert decode_image(data, f"image {number}").mode == "RGB"
