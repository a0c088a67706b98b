"""The loop: what happens when, true rates, and every skipped item named once."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from vqgan.data import loader
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.source import Sample, UnusableSample
from vqgan.data.unused import Unused
from vqgan.fingerprints import FrozenPart
from vqgan.training.loop import LoopConfig, TrainingLoop
from vqgan.training.monitor.trackers import Trackers, TrackersConfig
from vqgan.training.run_folder import RunFolder
from vqgan.training.task import Stateful


class Sleeper:
    """A task that takes a known time; its loss is the step's number."""

    def __init__(self, step_seconds: float = 0.0, evaluation_seconds: float = 0.0) -> None:
        self.step_seconds, self.evaluation_seconds = step_seconds, evaluation_seconds
        self.weights = nn.Linear(1, 1)
        self.evaluated: list[int] = []

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        time.sleep(self.step_seconds)
        sometimes = {"penalty": torch.tensor(1.0)} if step == 1 else {}
        return {"loss": torch.tensor(float(step)), "parts": torch.tensor(float(len(batches)))} | sometimes

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        return [f"the loss is {metrics['loss']}, too high"] if metrics["run_share"] > 0.5 else []

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        time.sleep(self.evaluation_seconds)
        self.evaluated.append(sum(len(batch) for batch in batches))
        return {"images": float(self.evaluated[-1])}

    def preview(self, batch: Batch) -> Image.Image:
        return Image.new("RGB", (len(batch), 1))

    def stateful(self) -> dict[str, Stateful]:
        return {"weights": self.weights}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return {}

    def save_model(self, folder: Path) -> None:
        (folder / "model").write_text("")


class Squares:
    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise UnusableSample(f"square {index}", "truncated")
        return Sample(Image.new("RGB", (4, 4)), None, f"square {index}")


def run(folder: Path, task: Sleeper, monkeypatch: pytest.MonkeyPatch, train: Any = None, **settings: int) -> RunFolder:
    sources = {"train": train or Squares(), "val": Squares()}
    monkeypatch.setattr(loader, "open_source", lambda _config, split, _size, **_: sources[split])
    data = DataPipeline(DataConfig(batch_size=4, transform=TransformConfig(image_size=4), val_limit=6), seed=0)
    accelerator, run_folder = Accelerator(), RunFolder(folder)
    run_folder.create()
    trackers = Trackers(TrackersConfig(), run_folder, accelerator, {})
    config, preview = LoopConfig.model_validate(settings), data.preview_batch(3)
    assert TrainingLoop(config, task, data, run_folder, accelerator, trackers, preview, "test").run()
    return run_folder


def test_what_happens_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Sleeper()
    every = {"log_every": 2, "evaluate_every": 3, "preview_every": 2, "save_every": 3, "keep_checkpoints": 5}
    run_folder = run(tmp_path, task, monkeypatch, steps=7, gradient_accumulation_steps=2, **every)
    records = run_folder.read_metrics()
    assert [(record["step"], record["split"]) for record in records] == [
        *((2, "train"), (3, "val"), (4, "train"), (4, "event"), (6, "train"), (6, "val"), (7, "train")),
        (7, "val"),
    ]
    assert records[3] == {"step": 4, "split": "event", "event": "finding", "finding": "the loss is 2.5, too high"}
    train = [record for record in records if record["split"] == "train"]
    assert [record["loss"] for record in train] == [0.5, 2.5, 4.5, 6.0], "the mean since the line before"
    assert [record["parts"] for record in train] == [2] * 4
    assert [record.get("penalty") for record in train] == [1, None, None, None], "the mean of the steps that have it"
    assert task.evaluated == [6, 6, 6]
    assert sorted(path.name for path in run_folder.samples.iterdir()) == [
        f"step-{step:07d}.png" for step in (1, 2, 4, 6, 7)
    ]
    assert sorted(path.name for path in run_folder.checkpoints.iterdir()) == [f"step-{step:07d}" for step in (3, 6, 7)]
    assert (run_folder.model / "model").is_file()


def test_what_the_data_set_passes_over_is_said_at_the_start_of_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Squares()
    train.unused = (Unused.of(["cats"], "linked folders", "lead nowhere"),)  # type: ignore[attr-defined]
    for steps in (1, 2):  # the second goes on with the first one's run
        run(tmp_path, Sleeper(), monkeypatch, train, steps=steps)
        said = capsys.readouterr().err
        assert said.count("not used: 1 linked folders (cats): lead nowhere\n") == 1
        assert said.index("not used") > said.index("images to train on, ")
        assert "8 images held out, of which evaluations use 6, a fixed random sample, 4 a step" in said


def test_the_printed_rate_is_images_by_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Sleeper(step_seconds=0.02, evaluation_seconds=0.3)
    start = time.monotonic()
    run_folder = run(tmp_path, task, monkeypatch, steps=13, log_every=5, evaluate_every=5, preview_every=1)
    whole, said = time.monotonic() - start, capsys.readouterr().err
    train = [record for record in run_folder.read_metrics() if record["split"] == "train"]
    ends = [0.0, *(float(str(record["seconds"])) for record in train)]
    for record, steps, began, ended in zip(train, (5, 5, 3), ends[:-1], ends[1:], strict=True):
        rate = float(str(record["images_per_second"]))
        assert rate == pytest.approx(steps * 4 / (ended - began), rel=1e-6), "steps x batch / time"
        assert f"step {record['step']}/13  {rate:.0f} images/s" in said
    # By the clock on the wall: all steps sleep 0.02 s, evaluations (0.3 s each) and previews are left out.
    assert 13 * 0.02 <= ends[-1] < whole - 3 * 0.3
    assert float(str(train[0]["images_per_second"])) <= 4 / 0.02


def test_skipped_items_are_named_once_counted_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Squares(broken=(2, 5))
    run_folder = run(tmp_path, Sleeper(), monkeypatch, broken, steps=6, log_every=2)
    said = capsys.readouterr().err
    for index in (2, 5):
        assert said.count(f"skipped square {index}: truncated") == 1
    assert "(2 unusable so far)" in said
    assert [record.get("skipped_items") for record in run_folder.read_metrics()][-2] == 2
    run(tmp_path, Sleeper(), monkeypatch, broken, steps=10, log_every=2)
    assert "skipped square" not in capsys.readouterr().err, "known from the checkpoint"
    assert run_folder.read_metrics()[-2]["skipped_items"] == 2
