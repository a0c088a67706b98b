"""tools/plan.py: the documented table, the verdict with its remedies, and wrong use in one line."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.plan import main
from vqgan.planning.hardware import GPU
from vqgan.planning.parallelism import ParallelismPlan
from vqgan.planning.plan import Hardware, Plan

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
TABLE = [line for line in PAGE.splitlines() if line.startswith("| parti_")]
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("python tools/plan.py") and "--row" in line]
SHAPES = ["--config", "configs/parti/shapes.yaml", "--gpus", "1"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_has_a_command_for_each_row() -> None:
    assert len(TABLE) == len(COMMANDS) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("row", "command"), list(zip(TABLE, COMMANDS, strict=True)))
def test_the_table_is_what_the_tool_prints(row: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == row


@pytest.mark.slow
def test_the_shown_plan_is_what_the_tool_prints(capsys: pytest.CaptureFixture[str]) -> None:
    command, shown = re.findall(r"```text\n\$ (.*?)\n(.*?)```", PAGE, re.DOTALL)[0]
    assert main(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.slow
def test_what_does_not_fit_comes_with_changes_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHAPES, "--gpu-memory", "0.15", "--gpu-tflops", "10"]) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text
    changes = text[text.index("what to change") :]
    gradient_accumulation_steps = int(re.findall(r"--loop.gradient_accumulation_steps (\d+) .*  fits", changes)[0])
    assert "--model.checkpoint_activations true" in changes
    assert "--task.optimizer.kind adafactor" in changes
    options = [
        "--gpu-memory",
        "0.15",
        "--gpu-tflops",
        "10",
        "--loop.gradient_accumulation_steps",
        str(gradient_accumulation_steps),
    ]
    assert main([*SHAPES, *options]) == 0


@pytest.mark.parametrize(("needed", "code"), [(89, 0), (91, 1)])
def test_the_exit_code_says_whether_it_fits(needed: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(
        "a run", "of nothing", {}, {}, Hardware(ParallelismPlan(), GPU(100e-9)), 1, 1, 1, 0, {"weights": needed}, 1.0
    )
    monkeypatch.setattr("parti.cli.plan.plan_run", lambda *_: plan)
    for form in ([], ["--row"]):
        assert main([*SHAPES, "--gpu", "h100", *form]) == code


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_process_and_0_after_the_change() -> None:
    words = [sys.executable, "tools/plan.py", "--config", "configs/reranker/shapes.yaml", "--gpu-memory", "0.05"]
    small = subprocess.run(words, capture_output=True, text=True, check=False)
    assert small.returncode == 1, small.stderr
    (change,) = re.findall(r"(--loop.gradient_accumulation_steps \d+) .*  fits", small.stdout)
    assert subprocess.run([*words, *change.split()], capture_output=True, check=False).returncode == 0


def test_stage_1(capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "configs/vqgan/shapes.yaml", "--gpu", "rtx4090", "--price-per-gpu-hour", "2"]
    assert main(config) == 0
    text = capsys.readouterr().out
    assert "discriminator" in text
    assert "perceptual network, frozen" in text
    assert "at 2 a GPU-hour" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SHAPES, "--gpu", "h10"], "--gpu h10 is not a choice"),
        (SHAPES, "give --gpu"),
        ([*SHAPES, "--model.widht", "8"], "did you mean"),
        (["--config", "configs/vqgan/shapes.yaml", "--model.widht", "8"], "widht"),
        ([*SHAPES, "--gpu", "h100", "--gpus", "7"], "does not divide among 7 GPUs; take 4 or 8 GPUs"),
        ([*SHAPES, "--gpu", "h100", "--gpus", "0"], "--gpus 0: a whole number from 1 on"),
        ([*SHAPES, "--gpu", "h100", "--gpus", "-2"], "--gpus -2: a whole number from 1 on"),
        ([*SHAPES, "--gpu", "h100", "--gpus-a-node", "0"], "--gpus-a-node 0: a whole number from 1 on"),
        ([*SHAPES, "--gpu", "h100", "--mfu", "40"], "--mfu 40: a share of the GPUs' peak"),
        ([*SHAPES, "--gpu", "h100", "--mfu", "0"], "--mfu 0: a share of the GPUs' peak"),
        ([*SHAPES, "--gpu", "h100", "--price-per-gpu-hour", "-1"], "--price-per-gpu-hour -1: a number from 0 on"),
        ([*SHAPES, "--gpu-memory", "0"], "--gpu-memory 0: a number above 0"),
        ([*SHAPES, "--gpu", "h100", "--gpus", "64", "--gpus-a-node", "5", "--strategy", "hybrid"], "give a multiple"),
        ([*SHAPES, "--gpu", "h100", "--image-tokenizer", "none.yaml"], "cannot be read"),
        ([*SHAPES, "--gpu", "h100", "--image_tokenizer", "runs/none"], "--image-tokenizer"),
        (["--config", "configs/vqgan/shapes.yaml", "--gpu", "h100", "--strategy", "fsdp"], "use ddp"),
        (["--config", "configs/reranker/shapes.yaml", "--gpu", "h100", "--strategy", "fsdp"], "use ddp"),
        (["--config", "configs/parti/shapes.yaml", "--gpu", "h100", "--objective", "fused"], "is not a choice"),
        (["--config", "configs/upsampler/shapes_2x.yaml", "--gpu", "h100", "--text.length", "8"], "text"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
