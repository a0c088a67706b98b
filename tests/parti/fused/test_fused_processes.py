"""Inpainting in two processes trains as one process with the same global batch does; synthesis stays one model."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.killed_runs import TIMINGS
from tests.parti.fused.fused_runs import inpainting, synthesis
from tests.two_processes import run_in_processes
from vqgan.training.run_folder import RunFolder


def one_of_two(name: str) -> None:
    folder = Path(name)
    assert inpainting(folder / "inpainting")
    task = synthesis(folder / "synthesis")
    players = {"generator": task.generator, "discriminators": task.discriminators}
    weights = {name: dict(player.named_parameters()) for name, player in players.items()}
    torch.save(weights, folder / f"players-{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two gloo processes left their runs."""
    folder = tmp_path_factory.mktemp("two")
    said = folder / "said.txt"
    assert run_in_processes(one_of_two, folder, said=said) == [0, 0], said.read_text()
    return folder


@pytest.mark.slow  # test_equal_steps has a step of each objective in two processes
def test_inpainting_in_two_processes_is_inpainting_in_one(two_processes: Path, tmp_path: Path) -> None:
    assert inpainting(tmp_path)
    found, expected = (RunFolder(folder).read_metrics() for folder in (two_processes / "inpainting", tmp_path))
    assert len(found) == len(expected) > 2
    for record, wanted in zip(found, expected, strict=True):
        for timing in TIMINGS:
            record.pop(timing, None), wanted.pop(timing, None)
        split = record.pop("split")
        assert split == wanted.pop("split")
        # What a validation pair loses depends on its place in its batch, and two processes have other batches.
        if split == "train":
            assert record == pytest.approx(wanted, rel=2e-4, abs=2e-4)
    states = [weights(folder) for folder in (two_processes / "inpainting", tmp_path)]
    for part, state in states[1].items():
        for key, value in state.items():
            if torch.is_tensor(value):
                torch.testing.assert_close(states[0][part][key], value, rtol=0, atol=2e-4, msg=f"{part}.{key}")


def test_both_processes_of_synthesis_have_the_same_players_at_the_end(two_processes: Path) -> None:
    """No more is claimed: wrong captions and batch statistics come from a process's own part of the batch."""
    first, second = (torch.load(two_processes / f"players-{rank}.pt", weights_only=True) for rank in range(2))
    for name, player in first.items():
        assert len(player) > 10
        for key, weight in player.items():
            assert torch.equal(weight, second[name][key]), f"{name}.{key}"
            assert weight.isfinite().all()


def weights(run: Path) -> dict[str, dict[str, Any]]:
    (last,) = sorted((run / "checkpoints").iterdir())[-1:]
    state = torch.load(last / "state.pt", weights_only=True)
    return {name: part for name, part in state.items() if name != "loop" and "optimizer" not in name}
