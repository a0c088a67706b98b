"""The model and the checkpoint of the best held-out evaluation. Over kills: test_kills.py."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import GUARDED, poisoned, stage_1

import vqgan.train
from vqgan.command_line import run_training
from vqgan.config import ConfigError, dump_config
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.tasks import AutoencoderTask
from vqgan.train import TrainVQGANConfig
from vqgan.training.best import Best, KeepBestConfig
from vqgan.training.run_folder import RunFolder

LOWER, HIGHER = (KeepBestConfig(figure="nats", mode=mode) for mode in ("lower", "higher"))


def test_what_is_better() -> None:
    values = [math.nan, -2.0, -2.0, -1.0, -3.0, math.nan, -4.0]
    for config, expected in ((LOWER, [2, 5, 7]), (HIGHER, [2, 4])):
        best = Best(config)
        steps = [step for step, value in enumerate(values, start=1) if best.improved_by({"nats": value}, step)]
        assert steps == expected
        assert best.step == expected[-1]
        again = Best(config)
        again.load_state_dict(best.state_dict())
        assert again.evaluation() == best.evaluation()
        assert not again.improved_by({"nats": values[expected[-1] - 1]}, 9)


def test_another_figure_begins_anew() -> None:
    best = Best(LOWER)
    assert best.improved_by({"nats": 1.0}, 1)
    for other in (Best(HIGHER), Best(KeepBestConfig(figure="psnr", mode="lower")), Best(None)):
        other.load_state_dict(best.state_dict())
        assert other.step == 0
    best.load_state_dict({})  # of a run that did not keep it
    assert best.step == 0


def test_an_unknown_figure_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_step(*_: object) -> None:
        raise AssertionError("the figure is wrong")

    monkeypatch.setattr(AutoencoderTask, "train_step", no_step)
    config = stage_1(tmp_path / "run", **{"loop.keep_best": {"figure": "fidelity", "mode": "higher"}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert run_training(["--config", str(tmp_path / "config.yaml")], TrainVQGANConfig, vqgan.train.train, None) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: loop.keep_best.figure: 'fidelity' is no figure of this run's held-out evaluations; choose one of "
        "codebook_perplexity, codebook_usage, psnr, reconstruction_accuracy"
    )
    with pytest.raises(ConfigError, match="mode"):
        stage_1(tmp_path, **{"loop.keep_best": {"figure": "psnr", "mode": "best"}})


def test_asking_for_it_changes_no_number_and_best_is_a_model_folder(tmp_path: Path) -> None:
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    keep: dict[str, Any] = {"loop.keep_best": {"figure": "psnr", "mode": "lower"}}  # the first: training goes well
    assert vqgan.train.train(stage_1(plain))
    assert vqgan.train.train(stage_1(kept, **keep))
    assert [(kept / "model" / name).read_bytes() for name in ("model.safetensors", "config.json")] == [
        (plain / "model" / name).read_bytes() for name in ("model.safetensors", "config.json")
    ]
    evaluations = [record for record in RunFolder(kept).read_metrics() if record["split"] == "heldout"]
    best = json.loads((kept / "best" / "best.json").read_text())
    assert best == {"step": 4, "figure": "psnr", "value": evaluations[0]["psnr"], "mode": "lower"}
    assert evaluations[0]["step"] == 4
    assert evaluations[1]["psnr"] > best["value"]
    ImageTokenizer.from_pretrained(kept / "best")
    checkpoints = RunFolder(kept).checkpoints
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"step-{step:07d}" for step in (4, 6, 8)]


def test_going_back_behind_the_best_keeps_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = {"loop.keep_best": {"figure": "psnr", "mode": "lower"}, "loop.evaluate_every": 2}
    monkeypatch.setattr(AutoencoderTask, "train_step", poisoned(AutoencoderTask.train_step, (2, 4, 5)))
    assert vqgan.train.train(stage_1(tmp_path, **GUARDED | keep))
    events = [record for record in RunFolder(tmp_path).read_metrics() if record.get("event") == "rolled_back"]
    assert [(event["from"], event["to"]) for event in events] == [(6, 2)]
    # Of step 4, which was taken back: the weights were sound, and nothing since was better.
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 4
    ImageTokenizer.from_pretrained(tmp_path / "best")
