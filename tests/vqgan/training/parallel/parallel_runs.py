"""What test_distributed.py runs in two processes: every check that needs them, in one launch."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch

import parti.next_token.train_next_token
import vqgan.train_tokenizer
from tests.tiny_runs import GUARDED, PARALLEL_1, PARALLEL_2, poisoned, stage_1, stage_2
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.data.batch import Batch
from vqgan.metrics.sums import MetricSums
from vqgan.training import loop
from vqgan.training.parallel.distributed import all_gather_object, all_gather_rows, all_reduce_mean, build_accelerator


def collectives() -> dict[str, Any]:
    accelerator = build_accelerator()
    rank = accelerator.process_index
    rows = torch.arange(4).view(2, 2) + 10 * rank
    sums = MetricSums(accelerator)
    sums.add("everywhere", torch.tensor([1.0, 2.0]))
    sums.add("everywhere", torch.tensor([rank, 0]))
    if rank == 0:  # the other one had no batch left
        sums.add("on rank 0 only", torch.tensor([[3, 4]]))
    means = all_reduce_mean(accelerator, {"a": torch.tensor(1.0 + rank), "b": torch.tensor([2.0 * rank])})
    return {
        "processes": accelerator.num_processes,
        "rows": all_gather_rows(accelerator, rows.T).tolist(),  # not contiguous
        "things": all_gather_object(accelerator, ["a"] * (1 - rank) + ["b", "c"] * rank),
        "means": means,
        "sums": {name: total.tolist() for name, total in sums.totals().items()},
    }


def signalled_once(step: int, rank: int) -> None:
    """SIGTERM to one process, while it trains step number `step`."""
    train_step = AutoencoderTask.train_step

    def signalled(task: AutoencoderTask, batches: list[Batch], number: int) -> Any:
        nonlocal step
        if number == step and task.accelerator.process_index == rank:
            step = -1
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(task, batches, number)

    AutoencoderTask.train_step = signalled  # type: ignore[method-assign,assignment]


def one_of_two(name: str) -> None:
    folder = Path(name)
    rank = int(os.environ["RANK"])
    (folder / f"collectives-{rank}.json").write_text(json.dumps(collectives()))
    finished = [
        vqgan.train_tokenizer.train(stage_1(folder / "stage-1", **PARALLEL_1)),
        parti.next_token.train_next_token.train(stage_2(folder / "stage-2", folder / "tokenizer", **PARALLEL_2)),
    ]
    patches = {"kind": "patchgan", "base_channels": 4, "layers": 2}
    changes = {"task.adversarial.discriminator": patches, "loop.steps": 2}
    finished.append(vqgan.train_tokenizer.train(stage_1(folder / "patchgan", **PARALLEL_1 | changes)))

    loop._STEPS_BETWEEN_AGREEING_TO_STOP = 2
    signalled_once(step=2, rank=1)
    finished.append(vqgan.train_tokenizer.train(stage_1(folder / "stopped", **PARALLEL_1)))
    finished.append(vqgan.train_tokenizer.train(stage_1(folder / "stopped", **PARALLEL_1)))

    AutoencoderTask.train_step = poisoned(AutoencoderTask.train_step, (3, 4), rank=1)  # type: ignore[method-assign,assignment]
    finished.append(vqgan.train_tokenizer.train(stage_1(folder / "guarded", **PARALLEL_1 | GUARDED)))
    (folder / f"finished-{rank}.json").write_text(json.dumps(finished))
    torch.distributed.destroy_process_group()
