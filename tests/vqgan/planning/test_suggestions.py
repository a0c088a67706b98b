"""What a plan says to change fits, wherever something does: on a made-up run whose memory is a formula."""

from types import SimpleNamespace
from typing import Any

import pytest

from vqgan.planning.hardware import GPU
from vqgan.planning.parallelism import ParallelismPlan
from vqgan.planning.plan import Hardware
from vqgan.planning.suggestions import Change, find_remedies


class Run(SimpleNamespace):
    """Weights of so many bytes, and so many for each image at a time."""

    def model_copy(self, update: dict[str, Any]) -> "Run":
        return Run(**(vars(self) | update))

    def model_dump(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def model_validate(cls, values: dict[str, Any]) -> "Run":
        return Run(**values)


def run(weights: int, an_image: int, batch: int = 64) -> Run:
    return Run(weights=weights, an_image=an_image, data=Run(batch_size=batch), loop=Run(gradient_accumulation_steps=1))


def measure(config: Run, on: Hardware) -> int:
    at_a_time = config.data.batch_size // on.parallelism.gpus // config.loop.gradient_accumulation_steps
    return config.weights // on.parallelism.parts + at_a_time * config.an_image + at_a_time**2


def less_a_image(config: Run, hardware: Hardware) -> tuple[Run, Hardware]:
    return config.model_copy({"an_image": config.an_image // 4}), hardware


def divided(config: Run, hardware: Hardware) -> tuple[Run, Hardware]:
    parallelism = hardware.parallelism
    return config, Hardware(ParallelismPlan("fsdp", parallelism.gpus), hardware.gpu)


CHANGES = [Change("--less", less_a_image), Change("--divided", divided)]


@pytest.mark.parametrize("room", [150, 300, 700, 1_500, 5_000, 9_000, 20_000])
@pytest.mark.parametrize(("weights", "an_image"), [(100, 100), (2_000, 500), (8_000, 10)])
@pytest.mark.parametrize("gpus", [1, 8])
def test_the_last_remedy_fits_or_nothing_does(room: int, weights: int, an_image: int, gpus: int) -> None:
    hardware = Hardware(ParallelismPlan("ddp", gpus), GPU(1))
    config = run(weights, an_image)
    needed = measure(config, hardware)
    if needed <= room:
        pytest.skip("fits as it is")
    suggestions = find_remedies(measure, config, hardware, needed, room, CHANGES)
    least = measure(
        *divided(*less_a_image(config.model_copy({"loop": Run(gradient_accumulation_steps=64 // gpus)}), hardware))
    )
    assert (suggestions[-1].bytes <= room or any(one.bytes <= room for one in suggestions)) == (least <= room)


def test_micro_batches_are_as_few_as_fit() -> None:
    hardware = Hardware(ParallelismPlan("ddp", 1), GPU(1))
    for room in range(210, 8_000, 130):
        suggestions = find_remedies(measure, run(100, 100), hardware, measure(run(100, 100), hardware), room)
        gradient_accumulation_steps = int(suggestions[0].change.split()[-1])
        fitting = [size for size in (1, 2, 4, 8, 16, 32) if 100 + size * 100 + size**2 <= room]
        assert 64 // gradient_accumulation_steps == max(fitting, default=1)


def test_there_is_no_remedy_for_one_image_at_a_time() -> None:
    hardware = Hardware(ParallelismPlan("ddp", 1), GPU(1))
    assert find_remedies(measure, run(100, 100, batch=1), hardware, 201, 100) == []
