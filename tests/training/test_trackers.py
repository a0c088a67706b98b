"""Figures reach metrics.jsonl always, and each tracker that is asked for."""

import sys
from pathlib import Path

import pytest

from vqgan.config import ConfigError
from vqgan.train import TrainVQGANConfig
from vqgan.training.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder
from vqgan.training.trackers import Trackers, TrackersConfig


def logged(names: tuple[str, ...], folder: Path) -> RunFolder:
    run = RunFolder(folder)
    config = TrainVQGANConfig(run_dir=str(folder), trackers=TrackersConfig(names=names, project="test"))
    run.create()
    trackers = Trackers(config.trackers, run, build_accelerator(), config.model_dump(mode="json"))
    trackers.log({"loss": 2.0}, 1, "train")
    trackers.log({"psnr": 30.0}, 2, "heldout")
    trackers.close()
    return run


def test_the_file_is_always_written(tmp_path: Path) -> None:
    assert logged((), tmp_path).read_metrics() == [
        {"step": 1, "split": "train", "loss": 2.0},
        {"step": 2, "split": "heldout", "psnr": 30.0},
    ]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path: Path) -> None:
    run = logged(("tensorboard",), tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in run.path.rglob("events.out.*") if file.parent.name == "test"}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("heldout/psnr")] == [(2, 30.0)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged(("wandb",), tmp_path)
    assert list(tmp_path.rglob("run-*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged(("trackio",), tmp_path)
    assert list((tmp_path / "trackio").rglob("*.db"))


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="wandb not installed; pip install wandb"):
        logged(("wandb",), tmp_path)
