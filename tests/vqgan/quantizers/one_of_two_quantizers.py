"""What test_two_processes.py starts twice. Arguments: a folder, the rank."""

import sys
from pathlib import Path

import torch
from torch import distributed

from vqgan.quantizers import LookupFreeConfig, LookupFreeQuantizer, NearestEMAConfig, NearestEMAQuantizer
from vqgan.system.collectives import all_reduce_sum, broadcast_from_rank_zero


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mine = torch.tensor([1.0 + rank, 10.0])
    torch.manual_seed(0)
    model = NearestEMAQuantizer(NearestEMAConfig(codebook_size=12, code_dim=4))
    for step in range(3):
        batch = torch.randn(4, 10, 4, generator=torch.Generator().manual_seed(step))
        model(batch[2 * rank : 2 * rank + 2])
    found = {"sum": all_reduce_sum(mine), "first": broadcast_from_rank_zero(mine), "mine": mine}
    bits = LookupFreeQuantizer(LookupFreeConfig(bits=4))
    own = torch.randn(4, 10, 4, generator=torch.Generator().manual_seed(3))[2 * rank : 2 * rank + 2]
    for name, training in (("entropy of all", True), ("entropy of mine", False)):
        found[name] = bits.train(training)(own).stats["code_entropy"]
    torch.save(found | model.state_dict(), folder / f"found-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
