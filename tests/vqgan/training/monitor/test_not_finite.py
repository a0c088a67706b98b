"""Values that are not numbers, in the weights or in what belongs to them: noticed before anything is made of them.

The gradient's guard alone would not do: a moment that is not a number spoils a weight in a step whose gradient was
fine, and an infinite one stops a weight for ever, with gradients as before. (Batches: test_guarded_runs.py.)
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vqgan.train_tokenizer
from tests.tiny_runs import stage_1
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.data.batch import Batch
from vqgan.training.monitor.nan_guard import TrainingDiverged
from vqgan.training.run_folder import RunFolder

Break = Callable[[AutoencoderTask], Tensor]


def weight(task: AutoencoderTask) -> Tensor:
    return next(task.autoencoder.decoder.parameters())


def code(task: AutoencoderTask) -> Tensor:
    return task.autoencoder.quantizer.codebook


def average(task: AutoencoderTask) -> Tensor:
    return next(task.ema.module.parameters())


def discriminator(task: AutoencoderTask) -> Tensor:
    assert task.discriminator_trainer is not None
    return next(task.discriminator_trainer.discriminator.parameters())


def momentum(task: AutoencoderTask) -> Tensor:
    return _moment(task.optimizer._optimizer, "momentum_buffer", "exp_avg")


def second_moment(task: AutoencoderTask) -> Tensor:
    assert task.discriminator_trainer is not None
    return _moment(task.discriminator_trainer.optimizer._optimizer, "exp_avg_sq")


def _moment(optimizer: torch.optim.Optimizer, *names: str) -> Tensor:
    state = next(iter(optimizer.state.values()))
    return next(state[name] for name in names if name in state)


def break_after(monkeypatch: pytest.MonkeyPatch, step: int, what: Break, value: float) -> None:
    """One element is `value` after step number `step` (from 1); not again where the step comes again."""
    train_step = AutoencoderTask.train_step
    broken = False

    def breaking(task: AutoencoderTask, batches: Sequence[Batch], number: int) -> dict[str, Tensor]:
        nonlocal broken
        metrics = train_step(task, batches, number)
        if number + 1 == step and not broken:
            broken = True
            with torch.no_grad():
                what(task).view(-1)[0] = value
        return metrics

    monkeypatch.setattr(AutoencoderTask, "train_step", breaking)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return [tensor for item in state for tensor in tensors(item)]
    return [state] if isinstance(state, Tensor) else []


def assert_all_is_finite(run: Path) -> None:
    """In every checkpoint, in the model and in the metrics."""
    checkpoints = list((run / "checkpoints").glob("step-*/state.pt"))
    assert checkpoints
    for path in checkpoints:
        assert all(tensor.isfinite().all() for tensor in tensors(torch.load(path, weights_only=True))), path
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model" / "model.safetensors").values())
    for record in RunFolder(run).read_metrics():
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float)), record


@pytest.mark.parametrize(
    ("what", "value", "step"),
    [
        (weight, math.nan, 5),  # the next step has no finite gradient, and step 6 would be saved
        (weight, math.nan, 6),  # the step that is saved
        (weight, math.inf, 4),  # the step that is evaluated
        (weight, math.nan, 8),  # the last step: what would be shipped
        (code, math.nan, 5),
        (average, math.nan, 5),  # nothing but the shipped model would show it
        (discriminator, math.nan, 5),
        (momentum, math.nan, 5),
        (second_moment, math.nan, 5),
        (second_moment, math.inf, 5),  # gradients stay finite for ever
    ],
)
def test_the_run_goes_back_to_clean_ones(
    what: Break, value: float, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(monkeypatch, step, what, value)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path))
    assert_all_is_finite(tmp_path)
    (event,) = (record for record in RunFolder(tmp_path).read_metrics() if record.get("event") == "rolled_back")
    assert event["to"] == (6 if step > 6 else 3)
    assert str(event["seen"]).startswith("values that are not finite in ")


def test_where_it_may_not_go_back_the_last_good_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(monkeypatch, 5, average, math.nan)
    with pytest.raises(TrainingDiverged, match=r"not finite in ema, and .*max_skipped_in_a_row 0") as stopped:
        vqgan.train_tokenizer.train(stage_1(tmp_path, **{"loop.guard": {"max_skipped_in_a_row": 0}}))
    assert "\n" not in str(stopped.value)
    assert_all_is_finite(tmp_path)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path)), "and from there the same command goes on"


def test_without_a_checkpoint_the_run_stops_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_after(monkeypatch, 2, average, math.nan)
    with pytest.raises(TrainingDiverged, match="not finite in ema, and there is no checkpoint from before"):
        vqgan.train_tokenizer.train(stage_1(tmp_path))
    assert not list(tmp_path.glob("checkpoints/*"))
    assert not (tmp_path / "model").exists()
