"""The reference set is the same set however it is read, and says so by its hash."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.folder import FolderConfig
from vqgan.data.shapes import ShapesConfig
from vqgan.data.source import DataError
from vqgan.data.transforms import TransformConfig
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig

SHAPES = ShapesConfig(train_size=6, heldout_size=5)


def shapes(split: EvaluatedSplit = "heldout", limit: int = 0, batch_size: int = 2, workers: int = 0) -> ReferenceSet:
    transform = TransformConfig(image_size=16, crop="random", flip=True)
    config = ReferenceSetConfig(source=SHAPES, transform=transform, batch_size=batch_size, workers=workers)
    return ReferenceSet(config, split, limit)


def read(reference: ReferenceSet) -> torch.Tensor:
    return torch.cat([batch.images for batch in reference.batches()])


def test_batches_and_workers_change_nothing() -> None:
    first, others = shapes(batch_size=2), [shapes(batch_size=5), shapes(batch_size=3, workers=2)]
    pictures = read(first)
    assert len(pictures) == first.expected == 5
    for other in others:
        assert torch.equal(read(other), pictures)
        assert other.protocol() == first.protocol()


def test_the_hash_is_that_of_the_rounded_pixels() -> None:
    reference = shapes()
    pixels = np.rint((read(reference).permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
    protocol = reference.protocol()
    assert protocol["reference"]["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert protocol["reference"]["pictures"] == 5
    assert protocol["crop"] == "center", "random crops are centred in evaluation"


def test_splits_and_limits() -> None:
    heldout, train, everything = (read(shapes(split)) for split in ("heldout", "train", "all"))
    assert torch.equal(everything, torch.cat([heldout, train]))
    limited = shapes("all", limit=7)
    assert limited.expected == 7
    assert torch.equal(read(limited), everything[:7])
    assert shapes(limit=100).expected == 5


def folder(path: Path) -> ReferenceSet:
    source = FolderConfig(path=str(path), heldout_share=0.5)
    return ReferenceSet(ReferenceSetConfig(source=source, transform=TransformConfig(image_size=8)), "all", 3)


def test_unusable_pictures_are_passed_over_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (10, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    reference = folder(tmp_path)
    assert len(read(reference)) == 3, "three usable ones, whatever lies between them"
    everything = folder(tmp_path)
    everything._limit = 0
    assert len(read(everything)) == 4
    assert everything.protocol()["reference"]["skipped"] == 1


def test_no_usable_picture_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match="no usable picture in the all split; skipped 2"):
        read(folder(tmp_path))


def test_captions_are_part_of_the_set_where_they_are_required(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (10, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in (0, 2):
        (tmp_path / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    config = ReferenceSetConfig(source=FolderConfig(path=str(tmp_path)), transform=TransformConfig(image_size=8))
    reference = ReferenceSet(config, "all", 0, require_captions=True)
    captions = [text for batch in reference.batches() for text in batch.texts()]
    assert sorted(captions) == ["picture 0", "picture 2"]
    protocol = reference.protocol()["reference"]
    assert protocol["pictures"] == 2
    text = "".join(f"{caption}\n" for caption in captions)
    assert protocol["captions_sha256"] == hashlib.sha256(text.encode()).hexdigest()

    without = ReferenceSet(config, "all", 0)
    assert sum(map(len, without.batches())) == 3
    assert "captions_sha256" not in without.protocol()["reference"]
