"""The examples of docs/data.md are valid."""

import re
from pathlib import Path

import pytest
import yaml

from vqgan.config import validate
from vqgan.data.loader import DataConfig

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_is_a_valid_data_section(example: str) -> None:
    assert validate(DataConfig, yaml.safe_load(example), "docs/data.md").source.kind


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_example_that_writes_shards_writes_shards_that_are_read(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from vqgan.data.shards.indexed import Shards
    from vqgan.data.shards.opening import open_shards
    from vqgan.data.shards.samples import ShardsConfig

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for number in range(4):
        path = tmp_path / "pictures" / "deep" / f"{number}.jpg"
        Image.new("RGB", (8, 8)).save(path)
        path.with_suffix(".txt").write_text(f"number {number}")
    exec(example, {})
    source = open_shards(ShardsConfig(path="train-{000000..000000}.tar", heldout_share=0.3), "train")
    assert isinstance(source, Shards)
    assert str(source[0].caption).startswith("number")
