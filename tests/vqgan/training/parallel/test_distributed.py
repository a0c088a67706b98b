"""Two processes, or two micro-batches, train as one process with the same global batch does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import parti.next_token.train_next_token
import vqgan.train_tokenizer
from tests.killed_runs import TIMINGS
from tests.tiny_runs import GUARDED, PARALLEL_1, PARALLEL_2, poisoned, stage_1, stage_2, untrained_tokenizer
from tests.two_processes import run_in_processes
from tests.vqgan.training.parallel.parallel_runs import one_of_two
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two gloo processes left their results."""
    folder = tmp_path_factory.mktemp("two")
    untrained_tokenizer(folder / "tokenizer")
    said = folder / "said.txt"
    codes = run_in_processes(one_of_two, folder, said=said)
    text = said.read_text()
    assert codes == [0, 0], text
    assert "Warning" not in text, text
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    assert vqgan.train_tokenizer.train(stage_1(folder / "stage-1", **PARALLEL_1))
    tokenizer = untrained_tokenizer(folder / "tokenizer")
    assert parti.next_token.train_next_token.train(stage_2(folder / "stage-2", tokenizer, **PARALLEL_2))
    return folder


def final_state(run: Path, step: int = 6) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step-{step:07d}" / "state.pt", weights_only=True)


def assert_same_run(run: Path, reference: Path, parts: list[str], tolerance: float) -> None:
    """The same metrics line by line, and the same weights."""
    records, expected = RunFolder(run).read_metrics(), RunFolder(reference).read_metrics()
    assert len(records) == len(expected) > 2
    for record, wanted in zip(records, expected, strict=True):
        for timing in TIMINGS:
            record.pop(timing, None), wanted.pop(timing, None)
        for name in [name for name, value in wanted.items() if isinstance(value, str)]:
            assert record.pop(name) == wanted.pop(name)
        assert record == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    states = final_state(run), final_state(reference)
    for part in parts:
        for name, weight in states[1][part].items():
            torch.testing.assert_close(states[0][part][name], weight, rtol=0, atol=tolerance, msg=f"{part}.{name}")


def test_collectives(two_processes: Path) -> None:
    first, second = (json.loads((two_processes / f"collectives-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["processes"] == 2
    assert first["rows"] == [[0, 2], [1, 3], [10, 12], [11, 13]]
    assert first["things"] == ["a", "b", "c"]
    assert first["means"] == {"a": 1.5, "b": 1.0}
    assert first["sums"] == {"everywhere": [3, 4], "on rank 0 only": [[3, 4]]}


def test_stage_1_in_two_processes_is_stage_1_in_one(two_processes: Path, one_process: Path) -> None:
    parts = ["autoencoder", "ema", "discriminator"]
    assert_same_run(two_processes / "stage-1", one_process / "stage-1", parts, tolerance=2e-4)


def test_stage_2_in_two_processes_is_stage_2_in_one(two_processes: Path, one_process: Path) -> None:
    assert_same_run(two_processes / "stage-2", one_process / "stage-2", ["generator", "ema"], tolerance=2e-4)


def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_as_if_nothing_had_been(two_processes: Path) -> None:
    for rank in range(2):
        finished = json.loads((two_processes / f"finished-{rank}.json").read_text())
        assert finished == [True, True, True, False, True, True]
    states = [final_state(two_processes / run) for run in ("stopped", "stage-1")]
    for part in ("autoencoder", "ema", "discriminator"):
        for name, weight in states[1][part].items():
            assert torch.equal(states[0][part][name], weight), f"{part}.{name}"
    assert {file.name for file in (two_processes / "stopped/checkpoints/step-0000006").iterdir()} == {
        *("state.pt", "process-0.pt", "process-1.pt", "about.json", "identity.json", "SHA256SUMS")
    }


def test_two_processes_skip_and_go_back_together_when_one_of_them_has_no_finite_gradient(
    two_processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoencoderTask, "train_step", poisoned(AutoencoderTask.train_step, (3, 4)))
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **PARALLEL_1 | GUARDED))
    events = [record for record in RunFolder(tmp_path).read_metrics() if record.get("event") == "rolled_back"]
    assert [(event["from"], event["to"]) for event in events] == [(5, 3)]
    assert_same_run(two_processes / "guarded", tmp_path, ["autoencoder", "ema", "discriminator"], tolerance=2e-4)


def test_a_run_goes_on_with_another_number_of_processes(two_processes: Path) -> None:
    patches = {"kind": "patchgan", "base_channels": 4, "layers": 2}
    longer = stage_1(
        two_processes / "patchgan", **PARALLEL_1 | {"loop.steps": 3, "task.adversarial.discriminator": patches}
    )
    assert vqgan.train_tokenizer.train(longer)
    assert final_state(two_processes / "patchgan", 3)["loop"]["processes"] == 1


@pytest.mark.parametrize("stage", [1, 2])
def test_two_micro_batches_are_one_batch(stage: int, one_process: Path, tmp_path: Path) -> None:
    if stage == 1:
        assert vqgan.train_tokenizer.train(
            stage_1(tmp_path / "run", **PARALLEL_1 | {"loop.gradient_accumulation_steps": 2})
        )
        parts = ["autoencoder", "ema", "discriminator"]
    else:
        config = stage_2(
            tmp_path / "run", one_process / "tokenizer", **PARALLEL_2 | {"loop.gradient_accumulation_steps": 2}
        )
        assert parti.next_token.train_next_token.train(config)
        parts = ["generator", "ema"]
    assert_same_run(tmp_path / "run", one_process / f"stage-{stage}", parts, tolerance=2e-4)
