"""The reference set is the same set however it is read, and says so by its hash."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.images.transforms import TransformConfig
from vqgan.data.source import DataError
from vqgan.data.sources.folder import FolderConfig
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig

SHAPES = ShapesConfig(train_size=6, val_size=5)


def shapes(split: EvaluatedSplit = "val", limit: int = 0, batch_size: int = 2, workers: int = 0) -> ReferenceSet:
    transform = TransformConfig(image_size=16, crop="random", flip=True)
    config = ReferenceSetConfig(source=SHAPES, transform=transform, batch_size=batch_size, workers=workers)
    return ReferenceSet(config, split, limit)


def read(reference: ReferenceSet) -> torch.Tensor:
    return torch.cat([batch.images for batch in reference.batches()])


def test_batches_and_workers_change_nothing() -> None:
    first, others = shapes(batch_size=2), [shapes(batch_size=5), shapes(batch_size=3, workers=2)]
    images = read(first)
    assert len(images) == first.expected == 5
    for other in others:
        assert torch.equal(read(other), images)
        assert other.protocol() == first.protocol()


def test_the_hash_is_that_of_the_rounded_pixels() -> None:
    reference = shapes()
    pixels = np.rint((read(reference).permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
    protocol = reference.protocol()
    assert protocol["reference"]["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert protocol["reference"]["images"] == 5
    assert protocol["crop"] == "center", "random crops are centered in evaluation"


def test_splits_and_limits() -> None:
    val, train, everything = (read(shapes(split)) for split in ("val", "train", "all"))
    assert torch.equal(everything, torch.cat([val, train]))
    limited = shapes("all", limit=7)
    assert limited.expected == 7
    assert len(read(limited)) == 7
    assert torch.equal(read(shapes(limit=3)), val[:3]), "validation images come in a random order already"
    assert shapes(limit=100).expected == 5
    assert torch.equal(read(shapes("all", limit=100)), everything)


def test_a_limited_training_split_is_a_fixed_random_sample_of_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):  # sorted by kind, as many data sets are
        shade = np.full((8, 8, 3), 4 * number, dtype=np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{number:02d}.png")

    def sample(split: EvaluatedSplit, limit: int, workers: int = 0) -> tuple[list[str], ReferenceSet]:
        source = FolderConfig(path=str(tmp_path), val_fraction=0.2)
        config = ReferenceSetConfig(source=source, transform=TransformConfig(image_size=8), workers=workers)
        reference = ReferenceSet(config, split, limit)
        return [name for batch in reference.batches() for name in batch.names], reference

    for split in ("train", "all"):
        names, reference = sample(split, 20)
        kinds = [int(name.removesuffix(".png")) // 15 for name in names]
        assert len(set(names)) == 20
        assert set(kinds) == {0, 1, 2, 3}, "all over the data set"
        assert names == sample(split, 20, workers=2)[0], "the same ones each time"
        assert set(names) < set(sample(split, 0)[0])
        assert names[:10] == sample(split, 10)[0], "a smaller sample is a part of a larger one"
        total = len(sample(split, 0)[0])
        assert reference.protocol()["reference"]["sampled"] == f"20 of {total} images, a fixed random sample"
        assert f"note: of the {split} split are used 20 of {total} images, a fixed" in capsys.readouterr().err
    assert "sampled" not in sample("all", 0)[1].protocol()["reference"]
    assert "note" not in capsys.readouterr().err


def folder(path: Path) -> ReferenceSet:
    source = FolderConfig(path=str(path), val_fraction=0.5)
    return ReferenceSet(ReferenceSetConfig(source=source, transform=TransformConfig(image_size=8)), "all", 3)


def test_unusable_images_are_passed_over_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (10, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    reference = folder(tmp_path)
    assert len(read(reference)) == 3, "three usable ones, whatever lies between them"
    everything = folder(tmp_path)
    everything._limit = 0
    assert len(read(everything)) == 4
    assert everything.protocol()["reference"]["skipped"] == 1


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="no usable image in the all split; skipped 2"):
        read(folder(tmp_path))


def test_captions_are_part_of_the_set_where_they_are_required(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (10, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in (0, 2):
        (tmp_path / f"{number}.txt").write_text(f"image {number}", encoding="utf-8")
    config = ReferenceSetConfig(source=FolderConfig(path=str(tmp_path)), transform=TransformConfig(image_size=8))
    reference = ReferenceSet(config, "all", 0, require_captions=True)
    captions = [text for batch in reference.batches() for text in batch.texts()]
    assert sorted(captions) == ["image 0", "image 2"]
    protocol = reference.protocol()["reference"]
    assert protocol["images"] == 2
    text = "".join(f"{caption}\n" for caption in captions)
    assert protocol["captions_sha256"] == hashlib.sha256(text.encode()).hexdigest()

    without = ReferenceSet(config, "all", 0)
    assert sum(map(len, without.batches())) == 3
    assert "captions_sha256" not in without.protocol()["reference"]
