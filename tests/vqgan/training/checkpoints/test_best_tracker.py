"""The model and the checkpoint of the best validation evaluation. Over kills: test_kills.py."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import vqgan.train_tokenizer
from tests.killed_runs import assert_equal, contents
from tests.tiny_runs import GUARDED, poisoned, stage_1
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.cli.command_line import run_training
from vqgan.config.schema import ConfigError, dump_config
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.checkpoints.best_tracker import BestTracker, KeepBestConfig
from vqgan.training.run_folder import RunFolder

LOWER, HIGHER = (KeepBestConfig(metric="nats", mode=mode) for mode in ("lower", "higher"))


def test_what_is_better() -> None:
    values = [math.nan, -2.0, -2.0, -1.0, -3.0, math.nan, -4.0]
    for config, expected in ((LOWER, [2, 5, 7]), (HIGHER, [2, 4])):
        best = BestTracker(config)
        steps = [step for step, value in enumerate(values, start=1) if best.improved_by({"nats": value}, step)]
        assert steps == expected
        assert best.step == expected[-1]
        again = BestTracker(config)
        again.load_state_dict(best.state_dict())
        assert again.evaluation() == best.evaluation()
        assert not again.improved_by({"nats": values[expected[-1] - 1]}, 9)


def test_another_metric_begins_anew() -> None:
    best = BestTracker(LOWER)
    assert best.improved_by({"nats": 1.0}, 1)
    for other in (BestTracker(HIGHER), BestTracker(KeepBestConfig(metric="psnr", mode="lower")), BestTracker(None)):
        other.load_state_dict(best.state_dict())
        assert other.step == 0
    best.load_state_dict({})  # of a run that did not keep it
    assert best.step == 0


def test_an_unknown_metric_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_step(*_: object) -> None:
        raise AssertionError("the metric is wrong")

    monkeypatch.setattr(AutoencoderTask, "train_step", no_step)
    config = stage_1(tmp_path / "run", **{"loop.keep_best": {"metric": "fidelity", "mode": "higher"}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert (
        run_training(["--config", str(tmp_path / "config.yaml")], TrainVQGANConfig, vqgan.train_tokenizer.train, None)
        == 2
    )
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: loop.keep_best.metric: 'fidelity' is no metric of this run's validation evaluations; choose one of "
        "codebook_perplexity, codebook_usage, psnr, reconstruction_accuracy"
    )
    with pytest.raises(ConfigError, match="mode"):
        stage_1(tmp_path, **{"loop.keep_best": {"metric": "psnr", "mode": "best"}})


def test_asking_for_it_changes_no_number_and_best_is_a_model_folder(tmp_path: Path) -> None:
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    keep: dict[str, Any] = {"loop.keep_best": {"metric": "psnr", "mode": "lower"}}  # the first: training goes well
    assert vqgan.train_tokenizer.train(stage_1(plain))
    assert vqgan.train_tokenizer.train(stage_1(kept, **keep))
    assert [(kept / "model" / name).read_bytes() for name in ("model.safetensors", "config.json")] == [
        (plain / "model" / name).read_bytes() for name in ("model.safetensors", "config.json")
    ]
    evaluations = [record for record in RunFolder(kept).read_metrics() if record["split"] == "val"]
    best = json.loads((kept / "best" / "best.json").read_text())
    assert best == {"step": 4, "metric": "psnr", "value": evaluations[0]["psnr"], "mode": "lower"}
    assert evaluations[0]["step"] == 4
    assert evaluations[1]["psnr"] > best["value"]
    ImageTokenizer.from_pretrained(kept / "best")
    checkpoints = RunFolder(kept).checkpoints
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"step-{step:07d}" for step in (4, 6, 8)]


def test_going_back_behind_the_best_keeps_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = {"loop.keep_best": {"metric": "psnr", "mode": "lower"}, "loop.evaluate_every": 2}
    monkeypatch.setattr(AutoencoderTask, "train_step", poisoned(AutoencoderTask.train_step, (2, 4, 5)))
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **GUARDED | keep))
    events = [record for record in RunFolder(tmp_path).read_metrics() if record.get("event") == "rolled_back"]
    assert [(event["from"], event["to"]) for event in events] == [(6, 2)]
    # Of step 4, which was taken back: the weights were sound, and nothing since was better.
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 4
    ImageTokenizer.from_pretrained(tmp_path / "best")


_BEST_FIRST: dict[str, Any] = {
    **{"loop.keep_best": {"metric": "psnr", "mode": "higher"}, "loop.evaluate_every": 2, "loop.steps": 12},
    "loop.log_every": 1,
}


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """PSNR by step, instead of the true one; the training loss falls all the time."""
    done = [0]
    train_step = AutoencoderTask.train_step

    def step(self: AutoencoderTask, batches: Any, number: int) -> dict[str, Any]:
        done[0] = number + 1
        metrics = train_step(self, batches, number)
        return {name: value for name, value in metrics.items() if not name.startswith("loss_")} | {
            "loss": metrics["loss"] * 0 + 1 / done[0]
        }

    monkeypatch.setattr(AutoencoderTask, "train_step", step)
    monkeypatch.setattr(AutoencoderTask, "evaluate", lambda _self, _batches: {"psnr": values.get(done[0], 0.0)})


def test_patience_ends_the_run_with_the_best_model_and_a_larger_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {2: 20.0, 4: 30.0, 6: 29.0, 8: 25.0, 10: 31.0, 12: 24.0}
    scripted(monkeypatch, values)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **_BEST_FIRST, **{"loop.patience": 2}))
    said = capsys.readouterr().err
    assert "step 8: 2 evaluations without a better one (loop.patience)" in said
    assert f"complete; the model in {tmp_path / 'model'} is the best, psnr 30 at step 4 (25 at step 8)" in said
    run = RunFolder(tmp_path)
    assert max(int(str(record["step"])) for record in run.read_metrics()) == 8
    shipped = (run.model / "model.safetensors").read_bytes()
    assert shipped == (run.best / "model.safetensors").read_bytes()
    assert not (run.model / "best.json").exists()
    ImageTokenizer.from_pretrained(run.model)

    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **_BEST_FIRST, **{"loop.patience": 2}))
    said = capsys.readouterr().err
    assert "is complete at step 8; a larger loop.patience goes on from there" in said
    assert max(int(str(record["step"])) for record in run.read_metrics()) == 8

    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **_BEST_FIRST, **{"loop.patience": 3}))
    assert json.loads((run.best / "best.json").read_text())["step"] == 10
    assert max(int(str(record["step"])) for record in run.read_metrics()) == 12
    assert (run.model / "model.safetensors").read_bytes() != (run.best / "model.safetensors").read_bytes()


def test_patience_counts_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {2: 30.0, 4: 29.0, 6: 28.0, 8: 27.0}
    scripted(monkeypatch, values)
    short = _BEST_FIRST | {"loop.steps": 5, "loop.patience": 3}
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **short))  # its last step has an evaluation too: 0.0
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **_BEST_FIRST, **{"loop.patience": 3}))
    assert max(int(str(record["step"])) for record in RunFolder(tmp_path).read_metrics()) == 6


def test_memorizing_is_said_once_and_recorded_and_the_best_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, {2: 30.0, 4: 28.0, 6: 26.0, 8: 24.0, 10: 22.0, 12: 20.0})
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **_BEST_FIRST))
    said = capsys.readouterr().err
    assert said.count("learned by heart") == 1
    assert "that is the last one; the best by psnr 30 at step 2 (20 at step 12) is in" in said
    events = [record for record in RunFolder(tmp_path).read_metrics() if record.get("event") == "finding"]
    assert [event["step"] for event in events if "learned by heart" in str(event["finding"])] == [4]


def test_a_run_that_memorizes_leaves_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {2: 30.0, 4: 28.0, 6: 26.0})
    folders = (tmp_path / "here", tmp_path / "in a room" / "of its own")
    for folder in folders:
        assert vqgan.train_tokenizer.train(stage_1(folder, **_BEST_FIRST | {"loop.steps": 6}))
    one, other = (contents(folder) for folder in folders)
    assert one["checkpoints/step-0000006/state.pt"]["loop"]["findings_val"]
    assert_equal(one, other)


def test_patience_waits_until_there_is_an_evaluation_to_compare_with_also_after_an_interruption() -> None:
    for interrupted in (False, True):
        best = BestTracker(HIGHER)
        given_up = []
        for step, value in enumerate((math.nan, math.nan, math.nan, 3.0, math.nan, 2.0), start=1):
            best.improved_by({"nats": value}, step)
            given_up.append(best.is_given_up(2))
            if interrupted:
                state, best = best.state_dict(), BestTracker(HIGHER)
                best.load_state_dict(state)
        assert given_up == [False] * 5 + [True]


def test_patience_without_anything_to_wait_for_is_refused(tmp_path: Path) -> None:
    for change in ({}, {"loop.keep_best": {"metric": "psnr", "mode": "higher"}, "loop.evaluate_every": 0}):
        with pytest.raises(ConfigError, match="patience 2 waits for a better evaluation"):
            stage_1(tmp_path, **{"loop.patience": 2}, **change)
