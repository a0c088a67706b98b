"""A stage-1 run, with everything on, meets images that are not numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vqgan.train_tokenizer
from tests.tiny_runs import GUARDED, poisoned, stage_1
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.training.monitor.nan_guard import TrainingDiverged
from vqgan.training.run_folder import RunFolder


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    monkeypatch.setattr(AutoencoderTask, "train_step", poisoned(AutoencoderTask.train_step, steps))


def leaves(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in leaves(item)]
    return [state] if isinstance(state, Tensor) else []


def assert_all_is_finite(run: Path) -> list[dict[str, Any]]:
    """The final state (moments and the codebook's memory too) and every metric; returns the records."""
    state = torch.load(run / "checkpoints" / "step-0000008" / "state.pt", weights_only=True)
    assert all(leaf.isfinite().all() for leaf in leaves(state))
    records: list[dict[str, Any]] = RunFolder(run).read_metrics()
    values = [value for record in records for value in record.values() if isinstance(value, float)]
    assert all(map(math.isfinite, values))
    return records


@pytest.mark.parametrize("step", [1, 4])  # in the continuous phase, whose latents start the codebook; later
def test_one_poisoned_batch_is_skipped_and_the_run_goes_on(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, step)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path))
    records = assert_all_is_finite(tmp_path)
    assert [record.get("skipped_steps") for record in records if record["split"] == "train"][-1] == 1
    (finding,) = (record["finding"] for record in records if "finite gradient" in record.get("finding", ""))
    assert "task.optimizer.learning_rate" in finding


def test_two_in_a_row_take_the_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 4, 5)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path, **GUARDED))
    records = assert_all_is_finite(tmp_path)
    (event,) = (record for record in records if record.get("event") == "rolled_back")
    assert (event["from"], event["to"]) == (6, 3)
    assert "(model, discriminator)" in event["seen"]


def test_the_explanation_names_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 0, 1)
    with pytest.raises(TrainingDiverged) as stopped:
        vqgan.train_tokenizer.train(stage_1(tmp_path, **GUARDED))
    message = str(stopped.value)
    assert message.startswith("training diverged at step 2: 2 steps in a row without a finite gradient")
    for key in ("optimizer.learning_rate", "optimizer.clip_norm", "precision", "adversarial.r1_gamma"):
        assert f"task.{key}" in message
    assert "\n" not in message
