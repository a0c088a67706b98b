"""A run that was stopped gives, bit for bit, the weights and metrics of one that never was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import parti.next_token.train_next_token
import vqgan.train_tokenizer
from tests.killed_runs import TIMINGS, assert_equal
from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.cli.command_line import run_training
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.schema import dump_config
from vqgan.data.batch import Batch
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.checkpoints.store import CheckpointError
from vqgan.training.loop import TrainingLoop
from vqgan.training.run_folder import RunFolder

STEPS = 8


class Killed(BaseException):
    """Nothing of the program gets to run afterwards, as when the machine goes down."""


def start(stage: int, run_dir: Path) -> bool:
    """Start, or start again, the run in `run_dir`."""
    if stage == 1:
        return vqgan.train_tokenizer.train(stage_1(run_dir, **_stage_1_crops()))
    tokenizer = run_dir.parent / "tokenizer"
    return parti.next_token.train_next_token.train(
        stage_2(run_dir, tokenizer if tokenizer.exists() else untrained_tokenizer(tokenizer))
    )


def _stage_1_crops() -> dict[str, Any]:
    return {"data.transform": {"image_size": 32, "crop": "random", "smallest_crop": 0.5, "flip": True}}


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[TrainingLoop], None]) -> None:
    """Let `act` happen once, as soon as step number `step` (from 1) is done and before anything is saved."""
    after_step = TrainingLoop._after_step
    happened = False

    def acting(loop: TrainingLoop, done: int, *arguments: Any) -> Any:
        nonlocal happened
        if done == step and not happened:
            happened = True
            act(loop)
        return after_step(loop, done, *arguments)

    monkeypatch.setattr(TrainingLoop, "_after_step", acting)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A signal that arrives while step number `step` runs."""
    should_stop = TrainingLoop._should_stop
    asked = False

    def stopping(loop: TrainingLoop, done: int) -> bool:
        nonlocal asked
        if done == step and not asked:
            asked = loop._stop.made = True
        return should_stop(loop, done)

    monkeypatch.setattr(TrainingLoop, "_should_stop", stopping)


def final_state(run_dir: Path) -> dict[str, Any]:
    state = torch.load(run_dir / "checkpoints" / f"step-{STEPS:07d}" / "state.pt", weights_only=True)
    for name in ("seconds", "metrics_bytes", "metrics_lines"):  # as long as the seconds in it are
        state["loop"].pop(name)
    return state


def metrics(run_dir: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in record.items() if name not in TIMINGS}
        for record in RunFolder(run_dir).read_metrics()
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Both stages, never stopped."""
    folders = {stage: tmp_path_factory.mktemp(f"stage-{stage}") / "run" for stage in (1, 2)}
    for stage, folder in folders.items():
        assert start(stage, folder)
    return folders


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("step", [1, 4, 6])  # in the continuous phase; between log lines; on a step that saves anyway
def test_stopped_by_a_signal_and_started_again(
    stage: int, step: int, straight: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_at(monkeypatch, step)
    assert start(stage, run) is False
    assert max(RunFolder(run).checkpoints.iterdir()).name == f"step-{step:07d}"
    torch.manual_seed(12345)  # another process would start from another random state
    assert start(stage, run) is True
    assert_equal(final_state(run), final_state(straight[stage]))
    assert metrics(run) == metrics(straight[stage])


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_beyond_its_last_checkpoint_and_started_again(
    stage: int, straight: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_loop: TrainingLoop) -> None:
        raise Killed

    run = tmp_path / "run"
    at_step(monkeypatch, 5, kill)
    with pytest.raises(Killed):
        start(stage, run)
    RunFolder(run).append_metrics({"step": 5, "split": "train", "loss": -1.0})  # metrics of steps that will come again
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "split": "tr')  # and a line that was cut off
    assert start(stage, run) is True
    assert_equal(final_state(run), final_state(straight[stage]))
    assert metrics(run) == metrics(straight[stage])


def test_the_straight_run_exercised_what_has_to_resume(straight: dict[int, Path]) -> None:
    train = [record for record in metrics(straight[1]) if record["split"] == "train"]
    assert [record["step"] for record in train] == [3, 6, 8]
    for name in ("r1_penalty", "loss_adversarial", "codes_replaced", "loss_codebook", "discriminator_gradient_norm"):
        assert any(name in record for record in train), name
    state = final_state(straight[1])
    assert state.keys() == {
        *("autoencoder", "ema", "optimizer", "codebook_maintenance", "loop"),
        *("discriminator", "discriminator_optimizer", "logit_averages"),
    }
    averaged, trained = state["ema"], state["autoencoder"]
    assert not torch.equal(averaged["encoder.to_latent.weight"], trained["encoder.to_latent.weight"])


def test_a_complete_run_started_again_trains_no_further(
    straight: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_step(*_: object) -> None:
        raise AssertionError("the run was complete")

    monkeypatch.setattr(AutoencoderTask, "train_step", no_step)
    before = metrics(straight[1])
    assert start(1, straight[1]) is True
    assert metrics(straight[1]) == before


def test_it_is_said_where_a_run_goes_on_and_what_is_other_than_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"loop.steps": 2, "task.adversarial.weight": 0.0}
    vqgan.train_tokenizer.train(stage_1(tmp_path, **short))
    said = capsys.readouterr().err
    assert "images to train on" in said
    assert " weights in training, on 1 x cpu" in said
    assert f"complete; the model is in {tmp_path / 'model'}" in said
    vqgan.train_tokenizer.train(stage_1(tmp_path, **short))
    assert f"{tmp_path} is complete at step 2; a larger loop.steps goes on from there" in capsys.readouterr().err
    vqgan.train_tokenizer.train(stage_1(tmp_path, **short | {"loop.steps": 3, "data.batch_size": 4}))
    said = capsys.readouterr().err
    assert "resuming at step 2 of 3" in said
    assert "loop.steps was 2 and is 3" in said
    assert "data.batch_size was 8 and is 4" in said
    assert "the samples come in another order" in said


def test_a_run_may_be_prolonged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    short = {"loop.steps": 2, "task.adversarial.weight": 0.0}
    vqgan.train_tokenizer.train(stage_1(run, **short))
    seen: list[int] = []
    train_step = AutoencoderTask.train_step

    def watched(task: AutoencoderTask, batches: list[Batch], step: int) -> Any:
        seen.append(step)
        return train_step(task, batches, step)

    monkeypatch.setattr(AutoencoderTask, "train_step", watched)
    vqgan.train_tokenizer.train(stage_1(run, **short | {"loop.steps": 4}))
    assert seen == [2, 3]
    said = capsys.readouterr()
    assert "optimizer: the learning rate had come down to" in said.out + said.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task.adversarial.weight": 0.0}, "holds the state of autoencoder, .*: the config changed; use"),
        (
            {"model.quantizer": {"codebook_size": 16, "code_dim": 4}},
            r"model\.quantizer\.codebook_size was 32 and is 16: its",
        ),
        ({"task.optimizer": {"kind": "adamw"}}, r"task\.optimizer\.kind was muon and is adamw: its weights"),
        (
            {"task.codebook_maintenance": {"memory": 128}},
            r"since .* began, task\.codebook_maintenance\.memory was 256 and",
        ),
    ],
)
def test_another_config_in_the_same_folder_is_one_clear_error(
    change: dict[str, Any], message: str, straight: dict[int, Path]
) -> None:
    recorded = (straight[1] / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        vqgan.train_tokenizer.train(stage_1(straight[1], **change))
    assert "\n" not in str(caught.value)
    assert (straight[1] / "config.yaml").read_text(encoding="utf-8") == recorded, "nothing is lost"


def test_an_interrupted_tool_exits_with_75_and_completes_when_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(stage_1(tmp_path / "run", **{"task.adversarial.weight": 0.0, "loop.steps": 3})))

    def tool() -> int:
        return run_training(["--config", str(config)], TrainVQGANConfig, vqgan.train_tokenizer.train, None)

    stop_at(monkeypatch, 2)
    assert tool() == ExitCode.INTERRUPTED == 75
    assert tool() == 0


@pytest.mark.slow  # test_stopping has the signal
def test_sigterm_saves_and_exits_with_75(tmp_path: Path) -> None:
    """The real signal to the real process."""
    config = tmp_path / "config.yaml"
    settings = {"task.adversarial.weight": 0.0, "loop.steps": 100_000, "loop.evaluate_every": 0, "loop.log_every": 1}
    config.write_text(dump_config(stage_1(tmp_path / "run", **settings)))
    tool = Path(__file__).parents[4] / "tools" / "train_vqgan.py"
    process = subprocess.Popen(
        [sys.executable, str(tool), "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step 2/" in line:
            process.terminate()
            break
    _, rest = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, rest
    assert "run the same command to go on" in rest
    (checkpoint,) = (path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith("step-"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert checkpoint.name == f"step-{lines[-1]['step']:07d}"
