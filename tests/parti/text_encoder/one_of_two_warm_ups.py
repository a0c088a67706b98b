"""What test_train_text_encoder.py starts twice. Argument: a folder."""

import os
import sys
from pathlib import Path

import torch

from tests.tiny import pairs
from tests.tiny_warm_up import tiny_task, uneven_pairs
from vqgan.data.batch import Batch


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    task = tiny_task(masking={"chosen": 0.5})
    val = task.evaluate([[pairs(8), uneven_pairs()][rank]])
    whole, own = uneven_pairs(), slice(4 * rank, 4 * rank + 4)
    metrics = task.train_step([Batch(whole.images[own], whole.captions[own], whole.names[own])], 3)
    found = {"val": val, "metrics": {name: metric.detach() for name, metric in metrics.items()}}
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
