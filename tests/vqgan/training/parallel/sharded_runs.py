"""Runs of stage 2 whose weights are sharded (FSDP2), and what test_sharding.py runs in two processes."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import parti.next_token.train_next_token
from parti.next_token.next_token_task import NextTokenTask
from parti.next_token.train_next_token import TrainPartiConfig
from tests.tiny_runs import PARALLEL_2, stage_2
from vqgan.cli.command_line import print_error
from vqgan.data.batch import Batch
from vqgan.errors import UserError
from vqgan.training import loop
from vqgan.training.loop import TrainingLoop

_WIDE = {"model.width": 128, "model.mlp_width": 130}  # wide enough for factored statistics; 130 rows: uneven parts

RUNS: dict[str, dict[str, Any]] = {
    "adamw": {"task.sampled_prompts": 2, "loop.preview_every": 3},
    "adafactor": _WIDE | {"task.optimizer.kind": "adafactor", "model.checkpoint_activations": True},
    "muon": {
        "task.optimizer.kind": "muon",
        "loop.gradient_accumulation_steps": 2,
        "model": {"kind": "decoder_only", "depth": 2, "width": 16, "heads": 2},
    },
    # Three validation batches for two processes, and below one.
    "bf16": {"task.precision": "bf16", "data.source": {"kind": "shapes", "train_size": 40, "val_size": 9}},
    "fp16": {"task.precision": "fp16", "model": {"kind": "decoder_only", "depth": 2, "width": 16, "heads": 2}},
    "guarded": {"loop.guard": {"max_skipped_in_a_row": 2}, "data.val_limit": 3, "task.sampled_prompts": 2},
    "moved": _WIDE | {"task.optimizer.kind": "adafactor", "model.checkpoint_activations": True},
    "compiled": {"task.compile_layers": True, "loop.steps": 2},
    "killed": {"loop.steps": 100_000, "loop.evaluate_every": 0, "loop.save_every": 2},
}
"""Changes of the tiny run of stage 2. All but the last have the losses of one process."""


def config_of(folder: Path, name: str) -> TrainPartiConfig:
    """The run of this name; its image tokenizer lies in the same folder."""
    changes = dict(PARALLEL_2 | {"loop.log_every": 1} | RUNS[name])
    if "model" in changes:
        changes.pop("model.dropout")
        changes["model.mlp_width"] = 32
    return stage_2(folder / name, folder / "tokenizer", **changes)


def stop_after(step: int) -> None:
    """SIGTERM to this process, when step number `step` is done."""
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def at_step(step: int, act: Callable[[], None]) -> None:
    """`act` once step number `step` is done."""
    should_stop = TrainingLoop._should_stop

    def acting(self: TrainingLoop, done: int) -> bool:
        if done == step:
            act()
        return should_stop(self, done)

    TrainingLoop._should_stop = acting  # type: ignore[method-assign]


def poison(steps: Sequence[int], rank: int) -> None:
    """An infinite weight in the gradient of one process at these steps; not again where a step comes again."""
    left, train_step = list(steps), NextTokenTask.train_step

    def poisoned(self: NextTokenTask, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if step not in left:
            return train_step(self, batches, step)
        left.remove(step)
        backward = self.accelerator.backward
        factor = float("inf") if self.accelerator.process_index == rank else 1.0
        self.accelerator.backward = lambda loss: backward(loss * factor)
        try:
            return train_step(self, [replace(batch) for batch in batches], step)
        finally:
            self.accelerator.backward = backward

    NextTokenTask.train_step = poisoned  # type: ignore[method-assign]


def one_of_several(directory: str, *names: str) -> int:
    """These runs, one after the other."""
    folder = Path(directory)
    rank = int(os.environ["RANK"])
    loop._STEPS_BETWEEN_AGREEING_TO_STOP = 1
    untouched = NextTokenTask.train_step, TrainingLoop._should_stop
    for name in names:
        if name == "guarded":
            poison((3, 4), rank=1)
        if name == "moved" and not (folder / "moved").exists():
            stop_after(2)
        if name == "killed" and rank == 1:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        try:
            parti.next_token.train_next_token.train(config_of(folder, name))
        except UserError as error:
            print_error(error)
            return 2
        NextTokenTask.train_step, TrainingLoop._should_stop = untouched  # type: ignore[method-assign]
    torch.distributed.destroy_process_group()
    return 0
