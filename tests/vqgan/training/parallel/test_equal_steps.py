"""A step's metrics and gradients are those of its whole batch, however many micro-batches or processes it is divided
among: for every objective, with captions of uneven lengths. What is no mean over fixed numbers would differ."""

import os
from pathlib import Path

import pytest
import torch

from tests.two_processes import run_in_processes
from tests.vqgan.training.parallel.equal_steps import (
    ALONE,
    BY_PROCESS,
    OBJECTIVES,
    Step,
    larger,
    parts_of,
    taken,
    uneven_pairs,
)

_SCALE_PAGE = Path(__file__).parents[4] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def one_batch() -> dict[str, Step]:
    return {name: taken(build, [larger(uneven_pairs(), side)]) for name, (build, side) in OBJECTIVES.items()}


def one_of_two(folder: str) -> None:
    """A step of every objective, with this process's half."""
    rank = int(os.environ["RANK"])
    found = {}
    for name, (build, side) in OBJECTIVES.items():
        if name not in BY_PROCESS:
            found[name] = taken(build, [parts_of(larger(uneven_pairs(), side), 2)[rank]], average=True)
    torch.save(found, Path(folder, f"found-{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Step]]:
    """What each of two gloo processes found."""
    folder = tmp_path_factory.mktemp("two")
    said = folder / "said.txt"
    assert run_in_processes(one_of_two, folder, said=said) == [0, 0], said.read_text()
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in ALONE])
def test_four_micro_batches_take_the_step_of_one_batch(objective: str, one_batch: dict[str, Step]) -> None:
    build, side = OBJECTIVES[objective]
    divided = taken(build, parts_of(larger(uneven_pairs(), side), 4))
    assert divided.differences(one_batch[objective]) == []


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in BY_PROCESS])
def test_two_processes_take_the_step_of_one(
    objective: str, two_processes: list[dict[str, Step]], one_batch: dict[str, Step]
) -> None:
    for found in two_processes:
        assert found[objective].differences(one_batch[objective]) == []


@pytest.mark.parametrize("objective", ALONE)
def test_what_differs_by_micro_batches_differs_and_is_documented(objective: str, one_batch: dict[str, Step]) -> None:
    """An exception that is none any more should go from the page."""
    build, side = OBJECTIVES[objective]
    divided = taken(build, parts_of(larger(uneven_pairs(), side), 4))
    assert divided.differences(one_batch[objective]) != []
    assert ALONE[objective] in " ".join(_SCALE_PAGE.read_text().split())


@pytest.mark.parametrize("name", BY_PROCESS)
def test_what_differs_by_processes_is_documented(name: str) -> None:
    assert BY_PROCESS[name] in " ".join(_SCALE_PAGE.read_text().split())
