"""What test_fused_processes.py starts twice. Argument: a folder for the runs."""

import os
import sys
from pathlib import Path

import torch

from tests.parti.fused.fused_runs import inpainting, synthesis


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    assert inpainting(folder / "inpainting")
    task = synthesis(folder / "synthesis")
    players = {"generator": task.generator, "discriminators": task.discriminators}
    weights = {name: dict(player.named_parameters()) for name, player in players.items()}
    torch.save(weights, folder / f"players-{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
