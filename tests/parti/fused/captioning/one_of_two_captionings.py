"""What test_captioning_task.py starts twice. Argument: a folder."""

import os
import sys
from pathlib import Path

import torch

from tests.tiny_captions import captioned, tiny_task
from vqgan.data.batch import Batch


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    task = tiny_task(lambda _, caption: len(caption) % 2 == 0)
    val = task.evaluate([[captioned(8), captioned(4, seed=1)][rank]])
    whole, own = captioned(8), slice(4 * rank, 4 * rank + 4)
    metrics = task.train_step([Batch(whole.images[own], whole.captions[own], whole.names[own])], 3)
    found = {"val": val, "metrics": {name: metric.detach() for name, metric in metrics.items()}}
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
