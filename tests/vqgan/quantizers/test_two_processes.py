"""Two processes keep one codebook: running means over both are those of one process with both batches."""

import os
from pathlib import Path

import torch
from torch import distributed

from tests.two_processes import run_in_processes
from vqgan.quantizers import LookupFreeConfig, LookupFreeQuantizer, NearestEMAConfig, NearestEMAQuantizer
from vqgan.system.collectives import all_reduce_sum, broadcast_from_rank_zero


def one_of_two(name: str) -> None:
    folder, rank = Path(name), int(os.environ["RANK"])
    distributed.init_process_group("gloo")
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


def test_two_processes_are_one(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    assert run_in_processes(one_of_two, tmp_path, said=said) == [0, 0], said.read_text()
    first, second = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["sum"].tolist() == second["sum"].tolist() == [3, 20]
    assert first["first"].tolist() == second["first"].tolist() == [1, 10]
    assert second["mine"].tolist() == [2, 10], "a collective returns its value and leaves its argument"

    bits = LookupFreeQuantizer(LookupFreeConfig(bits=4))
    every = torch.randn(4, 10, 4, generator=torch.Generator().manual_seed(3))
    together, apart = (bits(part).stats["code_entropy"] for part in (every, every[:2]))
    torch.testing.assert_close(first["entropy of all"], together)
    torch.testing.assert_close(second["entropy of all"], together)
    torch.testing.assert_close(first["entropy of mine"], apart, msg="evaluation asks nobody")
    assert not torch.allclose(together, apart)

    torch.manual_seed(0)
    alone = NearestEMAQuantizer(NearestEMAConfig(codebook_size=12, code_dim=4))
    start = alone.codebook.detach().clone()
    for step in range(3):
        alone(torch.randn(4, 10, 4, generator=torch.Generator().manual_seed(step)))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
    assert not torch.allclose(alone.codebook, start)
