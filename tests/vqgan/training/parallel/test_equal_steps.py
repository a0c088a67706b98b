"""A step's metrics and gradients are those of its whole batch, however many micro-batches or processes it is divided
among: for every objective, with captions of uneven lengths. What is no mean over fixed numbers would differ."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vqgan.train_tokenizer
from tests.tiny_runs import SHARDED_1, stage_1
from tests.two_processes import FSDP2, run_in_processes
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
from tests.vqgan.training.parallel.test_distributed import assert_same_run
from vqgan.training.parallel.sharding import is_sharding_requested

_SCALE_PAGE = Path(__file__).parents[4] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def one_batch() -> dict[str, Step]:
    return {name: taken(build, [larger(uneven_pairs(), side)]) for name, (build, side) in OBJECTIVES.items()}


def one_of_two(folder: str) -> None:
    """A step of every objective, with this process's half; where weights are sharded, a run of stage 1 follows."""
    rank = int(os.environ["RANK"])
    found = {}
    for name, (build, side) in OBJECTIVES.items():
        found[name] = taken(build, [parts_of(larger(uneven_pairs(), side), 2)[rank]], average=True)
    torch.save(found, Path(folder, f"found-{rank}.pt"))
    if is_sharding_requested():
        vqgan.train_tokenizer.train(stage_1(Path(folder, "stage-1"), **SHARDED_1))
    torch.distributed.destroy_process_group()


def of_two_processes(folder: Path, environment: Mapping[str, str]) -> list[dict[str, Step]]:
    """What each of two gloo processes found."""
    said = folder / "said.txt"
    assert run_in_processes(one_of_two, folder, said=said, environment=environment) == [0, 0], said.read_text()
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Step]]:
    return of_two_processes(tmp_path_factory.mktemp("two"), {})


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Step]]]:
    """The same with weights that are divided between the two, and the folder of a run of stage 1."""
    folder = tmp_path_factory.mktemp("sharded")
    return folder, of_two_processes(folder, FSDP2)


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


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sharded_weights_take_the_step_of_whole_ones(
    objective: str, sharded: tuple[Path, list[dict[str, Step]]], two_processes: list[dict[str, Step]]
) -> None:
    for found, expected in zip(sharded[1], two_processes, strict=True):
        assert found[objective].differences(expected[objective]) == []


def test_a_sharded_run_of_stage_1_is_that_of_one_process(
    sharded: tuple[Path, list[dict[str, Step]]], tmp_path: Path
) -> None:
    """With its codebook, which is whole on both, evaluations, previews and the model of the best evaluation."""
    assert vqgan.train_tokenizer.train(stage_1(tmp_path / "stage-1", **SHARDED_1))
    run = sharded[0] / "stage-1"
    assert_same_run(run, tmp_path / "stage-1", ["discriminator"], tolerance=2e-4)
    for name in ("model", "best"):
        shipped, expected = (load_file(folder / name / "model.safetensors") for folder in (run, tmp_path / "stage-1"))
        assert shipped.keys() == expected.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(shipped[key], weight, rtol=0, atol=2e-4, msg=key)
    assert (run / "samples" / "step-0000006.png").read_bytes()


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
