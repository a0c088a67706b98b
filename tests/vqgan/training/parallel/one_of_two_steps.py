"""What test_equal_steps.py starts twice: a step of every objective, each process with its half. Argument: a folder."""

import os
import sys
from pathlib import Path

import torch

from tests.vqgan.training.parallel.equal_steps import BY_PROCESS, OBJECTIVES, larger, parts_of, taken, uneven_pairs


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    found = {}
    for name, (build, side) in OBJECTIVES.items():
        if name not in BY_PROCESS:
            found[name] = taken(build, [parts_of(larger(uneven_pairs(), side), 2)[rank]], average=True)
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
