"""Ctrl-C and SIGTERM, once and twice, and what becomes of loader processes. The signals go to the whole group, as a
terminal and a scheduler send them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import vqgan.train_tokenizer
from tests.killed_runs import Commands, assert_equal, contents
from tests.tiny_runs import stage_1
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.cli.command_line import run_training
from vqgan.cli.exit_codes import ExitCode
from vqgan.data.batch import Batch
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.run_folder import RunFolder

_ENDLESS = {"loop.steps": 100_000, "loop.log_every": 1, "loop.evaluate_every": 0, "task.adversarial.weight": 0.0}

_LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
_WORK = """
import sys, time
from vqgan.training.stopping import StopRequest, end_with_launcher
end_with_launcher()
stop, until = StopRequest(), time.monotonic() + float(sys.argv[2])
def work():
    print("at work", flush=True)
    while not stop.made and time.monotonic() < until:
        time.sleep(0.01)
if sys.argv[1] == "starting":
    work()
else:
    with stop.listening(None):
        work()
        time.sleep(0.1)  # for a second signal to come
print("saved" if stop.made else "went on")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_once_saves_and_leaves_with_75(number: int, workers: int, commands: Commands, tmp_path: Path) -> None:
    config = stage_1(tmp_path / "run", **_ENDLESS | {"data.workers": workers})
    ending = commands.run(config, signals=[("step 2/", number)])
    assert ending.code == ExitCode.INTERRUPTED, ending.said
    assert ending.said.count("stopping after this step, saving; once more to leave at once") == 1
    assert ending.said.rstrip().endswith("saved; run the same command to go on")
    assert "Traceback" not in ending.said
    assert not ending.outlived


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_leaves_at_once_and_costs_no_checkpoint(number: int, commands: Commands, tmp_path: Path) -> None:
    config = stage_1(tmp_path / "run", **_ENDLESS | {"data.workers": 2})
    ending = commands.run(config, signals=[("step 4/", number), ("once more", number)])
    if ending.code == ExitCode.INTERRUPTED:
        pytest.skip("the step and the save were faster than the second signal")
    assert ending.code == -number, "ended by the signal itself: a shell shows 128 + its number, 130 for Ctrl-C"
    assert "Traceback" not in ending.said
    assert not ending.outlived
    again = commands.run(config, signals=[("images/s", number)])
    assert again.code == ExitCode.INTERRUPTED, again.said


def test_loaders_do_not_outlive_a_killed_trainer(commands: Commands, tmp_path: Path) -> None:
    config = stage_1(tmp_path / "run", **_ENDLESS | {"data.workers": 2})
    ending = commands.run(config, signals=[("step 2/", signal.SIGKILL)])
    assert ending.code == -signal.SIGKILL
    assert not ending.outlived


@pytest.mark.parametrize("variable", ["ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_trainer_saves_and_leaves_when_its_launcher_is_gone(variable: str, number: int) -> None:
    assert _said_after(number, {variable: "no"}, "listening", 20.0) == "saved"


def test_a_signal_to_launcher_and_trainer_is_one_signal() -> None:
    assert _said_after(signal.SIGTERM, {"ACCELERATE_DYNAMO_BACKEND": "no"}, "listening", 20.0, group=True) == "saved"


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own signal")
def test_a_trainer_that_has_nothing_to_save_ends_with_its_launcher() -> None:
    assert _said_after(signal.SIGKILL, {"ACCELERATE_DYNAMO_BACKEND": "no"}, "starting", 20.0) == ""


def test_a_shell_is_no_launcher() -> None:
    assert _said_after(signal.SIGTERM, {}, "listening", 0.5) == "went on"


def _said_after(number: int, environment: dict[str, str], *arguments: Any, group: bool = False) -> str:
    """What work says at its end when the process that started it, or the group of both, gets a signal."""
    command = [sys.executable, "-c", _LAUNCHER, _WORK, *map(str, arguments)]
    with subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "at work\n"
        (os.killpg if group else os.kill)(launcher.pid, number)
        return launcher.stdout.read().strip()


def test_ctrl_c_before_the_first_step_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    def starting(_config: TrainVQGANConfig) -> bool:
        raise KeyboardInterrupt

    assert run_training([], TrainVQGANConfig, starting, None) == ExitCode.INTERRUPTED_AT_ONCE == 130
    assert capsys.readouterr().err == (
        "interrupted before the first step: the run is as it was; run the same command to go on\n"
    )


@pytest.mark.parametrize("when", ["while a batch is loaded", "during an evaluation"])
def test_a_signal_finishes_what_is_under_way(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = tmp_path / "straight"
    assert vqgan.train_tokenizer.train(stage_1(straight))
    sent = False

    def send() -> None:
        nonlocal sent
        if not sent:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        if when == "during an evaluation":
            evaluate = AutoencoderTask.evaluate

            def evaluating(task: AutoencoderTask, batches: Iterable[Batch]) -> dict[str, float]:
                send()
                return evaluate(task, batches)

            patched.setattr(AutoencoderTask, "evaluate", evaluating)
        else:
            to = Batch.to

            def arriving(batch: Batch, device: Any) -> Batch:
                if len(RunFolder(tmp_path / "run").read_metrics()) == 1:  # behind the line of step 3
                    send()
                return to(batch, device)

            patched.setattr(Batch, "to", arriving)
        assert vqgan.train_tokenizer.train(stage_1(tmp_path / "run")) is False
    assert max(RunFolder(tmp_path / "run").checkpoints.iterdir()).name == "step-0000004", "no step more"
    torch.manual_seed(12345)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path / "run"))
    assert_equal(contents(tmp_path / "run"), contents(straight))
