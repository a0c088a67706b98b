"""The examples of docs/data.md are valid."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vqgan.config.schema import validate
from vqgan.data.loader import DataConfig
from vqgan.data.shards.indexed import Shards
from vqgan.data.shards.open_shards import open_shards
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.sources.huggingface import DatasetConfig, HubDataset

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_is_a_valid_data_section(example: str) -> None:
    assert validate(DataConfig, yaml.safe_load(example), "docs/data.md").source.kind


EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images with captions, where the examples look for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        path = folder / "deep" / f"{number}.jpg"
        Image.new("RGB", (8, 8)).save(path)
        path.with_suffix(".txt").write_text(f"number {number}")
    return folder


def example_that(calls: str) -> str:
    (found,) = [example for example in EXAMPLES if calls in example]
    return found


def test_every_python_example_is_run_below() -> None:
    assert sorted(EXAMPLES) == sorted(map(example_that, ("tarfile.open", "to_parquet")))


def test_the_example_that_writes_shards_writes_shards_that_are_read(images: Path) -> None:
    exec(example_that("tarfile.open"), {})
    shutil.rmtree(images)
    source = open_shards(ShardsConfig(path="train-{000000..000000}.tar", val_fraction=0.3), "train")
    assert isinstance(source, Shards)
    assert str(source[0].caption).startswith("number")


def test_the_example_that_writes_parquet_puts_the_images_inside(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", images.parent / "datasets")
    exec(example_that("to_parquet"), {})
    shutil.rmtree(images)
    rows = pyarrow.parquet.read_table("train-00000.parquet").to_pylist()
    assert [row["image"]["bytes"][:2] for row in rows] == [b"\xff\xd8"] * 4, "four JPEG files"
    source = HubDataset(DatasetConfig(name="train-00000.parquet", val_split="train"), "train")
    assert sorted(str(source[index].caption) for index in range(4)) == [f"number {number}" for number in range(4)]
    assert source[0].image.size == (8, 8)
