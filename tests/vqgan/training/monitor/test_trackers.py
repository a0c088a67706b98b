"""Metrics and images reach the run folder always, and each tracker asked for: read back from its own files."""

import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_runs import stage_1
from vqgan.config.schema import ConfigError
from vqgan.train_tokenizer import TrainVQGANConfig, train
from vqgan.training.monitor.trackers import Trackers, TrackersConfig
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

COUNTS = torch.tensor([0, 8, 2, 0])
IMAGE = Image.new("RGB", (8, 4), (200, 30, 60))


def logged(names: tuple[str, ...], folder: Path) -> RunFolder:
    run = RunFolder(folder)
    config = TrainVQGANConfig(run_dir=str(folder), trackers=TrackersConfig(names=names, project="test"))
    run.create()
    trackers = Trackers(config.trackers, run, build_accelerator(), config.model_dump(mode="json"))
    trackers.log({"loss": 2.0}, 1, "train")
    trackers.log({"psnr": 30.0}, 2, "val")
    trackers.preview(IMAGE, 2)
    trackers.code_counts(COUNTS, 2)
    trackers.close()
    return run


def test_the_run_folder_has_everything_without_a_tracker(tmp_path: Path) -> None:
    run = logged((), tmp_path)
    assert run.read_metrics() == [
        {"step": 1, "split": "train", "loss": 2.0},
        {"step": 2, "split": "val", "psnr": 30.0},
    ]
    assert sorted(path.name for path in run.samples.iterdir()) == ["codes-0000002.png", "step-0000002.png"]
    with Image.open(run.samples / "step-0000002.png") as image:
        assert image.getpixel((3, 2)) == (200, 30, 60)


def test_a_stage_1_run_shows_its_codebook(tmp_path: Path) -> None:
    train(stage_1(tmp_path, **{"loop.steps": 2, "loop.evaluate_every": 1}))
    assert sorted(path.name for path in (tmp_path / "samples").glob("codes-*")) == [
        "codes-0000001.png",
        "codes-0000002.png",
    ]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path: Path) -> None:
    run = logged(("tensorboard",), tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in run.path.rglob("events.out.*") if file.parent.name == "test"}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("val/psnr")] == [(2, 30.0)]
    (preview,) = events.Images("val/preview")
    assert (preview.step, preview.width, preview.height) == (2, 8, 4)
    assert events.Images("val/code_usage")
    (histogram,) = events.Histograms("val/codes_by_use")
    value = histogram.histogram_value
    used = [(limit, hits) for limit, hits in zip(value.bucket_limit, value.bucket, strict=True) if hits]
    assert used == [(1.0, 8.0), (2.0, 2.0)], "most used first"
    # The config, as accelerate writes it.
    hparams = [file for file in run.path.rglob("hparams.yml") if "model.kind: vit_vqgan" in file.read_text()]
    assert hparams


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged(("wandb",), tmp_path)
    (file,) = tmp_path.rglob("run-*.wandb")
    history, config = _wandb_records(file)
    assert history["train/loss"] == [2.0]
    assert history["val/psnr"] == [30.0]
    assert history["val/codes_by_use values"] == [[8, 2, 0, 0]]
    assert history["val/codes_by_use bins"] == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    (preview,) = history["val/preview path"]
    with Image.open(file.parent / "files" / preview) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(IMAGE))
    assert config["model.kind"] == "vit_vqgan"


def _wandb_records(file: Path) -> tuple[dict[str, list[Any]], dict[str, object]]:
    """What an offline run's file holds: each key's history, and the config."""
    from wandb.proto import wandb_internal_pb2

    records = []
    deadline = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        assert time.monotonic() < deadline, f"no end in {file}"
        time.sleep(0.1)  # the process that writes it may be behind
        records = [wandb_internal_pb2.Record.FromString(content) for content in _wandb_contents(file.read_bytes())]
    history: dict[str, list[Any]] = {}
    config: dict[str, object] = {}
    for record in records:
        for item in record.history.item:
            history.setdefault(item.key or " ".join(item.nested_key), []).append(json.loads(item.value_json))
        for item in (*record.config.update, *record.run.config.update):
            config[item.key or " ".join(item.nested_key)] = json.loads(item.value_json)
    return history, config


def _wandb_contents(data: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, in them checksum, length, kind and content."""
    contents, part, place = [], b"", 7  # after the file's own header
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15  # nothing fits into the rest of a block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            contents.append(part)
            part = b""
    return contents


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged(("trackio",), tmp_path)
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
        ((config,),) = connection.execute("select config from configs").fetchall()
    steps = {step for step, _ in rows}
    values = {name: value for _, metrics in rows for name, value in json.loads(metrics).items()}
    assert steps == {1, 2}
    assert (values["train/loss"], values["val/psnr"]) == (2.0, 30.0)
    histogram = values["val/codes_by_use"]
    assert (histogram["values"], histogram["bins"]) == ([8, 2, 0, 0], [0.0, 1.0, 2.0, 3.0, 4.0])
    with Image.open(tmp_path / "trackio" / "media" / values["val/preview"]["file_path"]) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(IMAGE))
    assert json.loads(config)["model.kind"] == "vit_vqgan"


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_login_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.errors import UsageError

    def refused(*_: object, **__: object) -> None:
        raise UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr("wandb.init", refused)
    with pytest.raises(ConfigError) as caught:
        logged(("wandb",), tmp_path)
    assert str(caught.value) == (
        "trackers.names: wandb does not start (No API key configured. Use `wandb login` to log in.); run "
        "`wandb login`, or set WANDB_MODE=offline to record on this machine alone"
    )


def test_errors_of_the_run_folder_are_not_taken_for_a_refused_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", broken)
    with pytest.raises(RuntimeError, match="broken"):
        logged(("tensorboard",), tmp_path)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="wandb not installed; pip install wandb"):
        logged(("wandb",), tmp_path)
