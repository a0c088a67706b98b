"""What a plan says to change fits, wherever something does: on a made-up run whose memory is a formula."""

from types import SimpleNamespace
from typing import Any

import pytest

from vqgan.planning.division import Division
from vqgan.planning.hardware import GPU
from vqgan.planning.plan import Machines
from vqgan.planning.remedies import Change, find_remedies


class Run(SimpleNamespace):
    """Weights of so many bytes, and so many for each picture at a time."""

    def model_copy(self, update: dict[str, Any]) -> "Run":
        return Run(**(vars(self) | update))

    def model_dump(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def model_validate(cls, values: dict[str, Any]) -> "Run":
        return Run(**values)


def run(weights: int, a_picture: int, batch: int = 64) -> Run:
    return Run(weights=weights, a_picture=a_picture, data=Run(batch_size=batch), loop=Run(micro_batches=1))


def measure(config: Run, on: Machines) -> int:
    at_a_time = config.data.batch_size // on.division.gpus // config.loop.micro_batches
    return config.weights // on.division.parts + at_a_time * config.a_picture + at_a_time**2


def less_a_picture(config: Run, machines: Machines) -> tuple[Run, Machines]:
    return config.model_copy({"a_picture": config.a_picture // 4}), machines


def divided(config: Run, machines: Machines) -> tuple[Run, Machines]:
    division = machines.division
    return config, Machines(Division("fsdp", division.gpus), machines.gpu)


CHANGES = [Change("--less", less_a_picture), Change("--divided", divided)]


@pytest.mark.parametrize("room", [150, 300, 700, 1_500, 5_000, 9_000, 20_000])
@pytest.mark.parametrize(("weights", "a_picture"), [(100, 100), (2_000, 500), (8_000, 10)])
@pytest.mark.parametrize("gpus", [1, 8])
def test_the_last_remedy_fits_or_nothing_does(room: int, weights: int, a_picture: int, gpus: int) -> None:
    machines = Machines(Division("ddp", gpus), GPU(1))
    config = run(weights, a_picture)
    needed = measure(config, machines)
    if needed <= room:
        pytest.skip("fits as it is")
    remedies = find_remedies(measure, config, machines, needed, room, CHANGES)
    least = measure(*divided(*less_a_picture(config.model_copy({"loop": Run(micro_batches=64 // gpus)}), machines)))
    assert (remedies[-1].bytes <= room or any(one.bytes <= room for one in remedies)) == (least <= room)


def test_micro_batches_are_as_few_as_fit() -> None:
    machines = Machines(Division("ddp", 1), GPU(1))
    for room in range(210, 8_000, 130):
        remedies = find_remedies(measure, run(100, 100), machines, measure(run(100, 100), machines), room)
        micro_batches = int(remedies[0].change.split()[-1])
        fitting = [size for size in (1, 2, 4, 8, 16, 32) if 100 + size * 100 + size**2 <= room]
        assert 64 // micro_batches == max(fitting, default=1)


def test_there_is_no_remedy_for_one_picture_at_a_time() -> None:
    machines = Machines(Division("ddp", 1), GPU(1))
    assert find_remedies(measure, run(100, 100, batch=1), machines, 201, 100) == []
