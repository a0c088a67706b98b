"""The run folder: files that only grow, and a model folder that is never half written."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from vqgan.config.schema import Config, load_config
from vqgan.system.atomic_files import CannotWriteError
from vqgan.training.run_folder import RunFolder


class SmallConfig(Config):
    """A config."""

    seed: int = 3
    """A number."""


def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder(tmp_path, SmallConfig(seed=5)).write_config()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteError, match=r"cannot write .*config\.yaml: No space left .*; free some space, then"):
        RunFolder(tmp_path, SmallConfig(seed=6)).write_config()
    assert load_config(SmallConfig, tmp_path / "config.yaml") == SmallConfig(seed=5)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_create_writes_the_config_that_loads_again(tmp_path: Path) -> None:
    for seed in (5, 6):  # running again
        run = RunFolder(tmp_path / "deep" / "run", SmallConfig(seed=seed))
        run.create()
        run.write_config()
    assert load_config(SmallConfig, run.path / "config.yaml") == SmallConfig(seed=6)
    assert run.samples.is_dir()


def test_what_the_recorded_config_says_otherwise(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, SmallConfig()).changed_settings() == []
    RunFolder(tmp_path, SmallConfig(seed=5)).write_config()
    assert RunFolder(tmp_path, SmallConfig(seed=5)).changed_settings() == []
    assert RunFolder(tmp_path, SmallConfig(seed=6)).changed_settings() == ["seed was 5 and is 6"]


def test_metrics_are_read_back_and_later_ones_cut(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    assert run.metrics_bytes() == 0
    records = [{"step": step, "split": "train", "loss": step / 3} for step in (10, 20, 30)]
    lengths = []
    for record in records:
        run.append_metrics(record)
        lengths.append(run.metrics_bytes())
    with run.metrics.open("a") as file:
        file.write('{"step": 40, "sp')  # killed in the middle of a line
    assert run.read_metrics() == records
    run.cut_metrics(lengths[1])
    assert run.read_metrics() == records[:2]
    run.append_metrics(records[2])
    assert run.read_metrics() == records
    run.cut_metrics(lengths[1] + 1_000_000)  # nothing is made up
    assert run.read_metrics() == records
    run.cut_metrics(lengths[1] + 3)  # someone has edited the file
    assert run.metrics.read_text().count("\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    run.cut_metrics(0)
    assert run.metrics.read_text() == ""


def test_images_sort_by_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    paths = [run.save_image(Image.new("RGB", (2, 2)), step) for step in (9, 10, 1000)]
    assert [path.name for path in paths] == ["step-0000009.png", "step-0000010.png", "step-0001000.png"]
    assert sorted(run.samples.iterdir()) == paths


def test_the_model_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def write(folder: Path) -> None:
        (folder / "first").write_text("1")

    def write_other(folder: Path) -> None:
        (folder / "second").write_text("2")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("No space left on device")

    run.replace_model(write)
    run.replace_model(write_other)
    assert [path.name for path in run.model.iterdir()] == ["second"]
    with pytest.raises(OSError, match="No space"):
        run.replace_model(fail)
    assert [path.name for path in run.model.iterdir()] == ["second"]
    run.replace_model(write)
    assert [path.name for path in run.model.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
