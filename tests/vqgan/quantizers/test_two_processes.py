"""Two processes keep one codebook: running means over both are those of one process with both batches."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from vqgan.quantizers import LookupFreeConfig, LookupFreeQuantizer, NearestEMAConfig, NearestEMAQuantizer

_SCRIPT = Path(__file__).with_name("one_of_two_quantizers.py")


def test_two_processes_are_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [
        subprocess.Popen([sys.executable, str(_SCRIPT), str(tmp_path), str(rank)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
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
