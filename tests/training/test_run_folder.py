"""The run folder: files that only grow, and a model folder that is never half written."""

from pathlib import Path

import pytest
from PIL import Image

from vqgan.config import Config, load_config
from vqgan.training.run_folder import RunFolder


class SmallConfig(Config):
    """A config."""

    seed: int = 3
    """A number."""


def test_create_writes_the_config_that_loads_again(tmp_path: Path) -> None:
    for seed in (5, 6):  # running again
        run = RunFolder(tmp_path / "deep" / "run", SmallConfig(seed=seed))
        run.create()
        run.write_config()
    assert load_config(SmallConfig, run.path / "config.yaml") == SmallConfig(seed=6)
    assert run.samples.is_dir()


def test_metrics_are_read_back_and_later_ones_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    records = [{"step": step, "split": "train", "loss": step / 3} for step in (10, 20, 30)]
    for record in records:
        run.append_metrics(record)
    with run.metrics.open("a") as file:
        file.write('{"step": 40, "sp')  # killed in the middle of a line
    assert run.read_metrics() == records
    run.forget_metrics_after(20)
    assert run.read_metrics() == records[:2]
    run.append_metrics(records[2])
    assert run.read_metrics() == records
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    run.forget_metrics_after(0)
    assert run.metrics.read_text() == ""


def test_checkpoints_later_than_a_step_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.forget_checkpoints_after(3)  # none yet
    for name in ("step-0000003", "step-0000020", "step-10000000", ".writing-step-0000007"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "state.pt").write_text("")
    run.forget_checkpoints_after(3)
    assert {path.name for path in run.checkpoints.iterdir()} == {"step-0000003", ".writing-step-0000007"}


def test_pictures_sort_by_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    paths = [run.save_picture(Image.new("RGB", (2, 2)), step) for step in (9, 10, 1000)]
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
