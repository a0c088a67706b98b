"""Training may decode a large JPEG at reduced size; whatever is measured or kept is of the whole image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.images.decode import decode_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import Source
from vqgan.data.sources.folder import FolderConfig
from vqgan.data.sources.mixture import MixedSourceConfig, MixtureConfig
from vqgan.data.sources.open_source import SourceConfig, open_source
from vqgan.data.stream import Stream
from vqgan.metrics.reference_set import ReferenceSet, ReferenceSetConfig

TRANSFORM = TransformConfig(image_size=16)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """One large JPEG of fine detail in each split."""
    for split in ("train", "valid"):
        pixels = np.random.default_rng(len(split)).integers(0, 256, (400, 400, 3), dtype=np.uint8)
        (tmp_path / split).mkdir()
        Image.fromarray(pixels).save(tmp_path / split / "a.jpg", quality=90)
    return tmp_path


def shown(path: Path, min_side: int | None) -> torch.Tensor:
    return ImageTransform(TRANSFORM)(decode_image(path, "a", min_side=min_side), None)


@pytest.mark.parametrize("mixed", [False, True])
def test_evaluations_and_previews_decode_whole_images(photographs: Path, mixed: bool) -> None:
    whole, reduced = (shown(photographs / "valid/a.jpg", min_side) for min_side in (None, TRANSFORM.min_decode_side))
    assert not torch.equal(whole, reduced), "so that it shows"
    source: SourceConfig = FolderConfig(path=str(photographs))
    if mixed:
        source = MixtureConfig(sources=(MixedSourceConfig(source=source),))
    data = DataPipeline(DataConfig(source=source, transform=TRANSFORM, batch_size=1), seed=0)
    assert torch.equal(next(data.val_batches()).images[0], whole)
    assert torch.equal(data.preview_batch(1).images[0], whole)
    ((batch,),) = data.training_batches(0, 1, BatchShard())
    assert torch.equal(batch.images[0], shown(photographs / "train/a.jpg", TRANSFORM.min_decode_side)), (
        "training is faster"
    )


@pytest.mark.parametrize("split", ["val", "train"])
def test_reference_sets_decode_whole_images(photographs: Path, split: str) -> None:
    config = ReferenceSetConfig(source=FolderConfig(path=str(photographs)), transform=TRANSFORM)
    (batch,) = ReferenceSet(config, split, 0).batches()  # type: ignore[arg-type]
    folder = "valid" if split == "val" else split
    assert torch.equal(batch.images[0], shown(photographs / folder / "a.jpg", None))


def test_a_check_sees_whole_images(photographs: Path) -> None:
    source: Source | Stream = open_source(FolderConfig(path=str(photographs)), "val", 16)
    assert isinstance(source, Source)
    assert source[0].image.size == (400, 400)
