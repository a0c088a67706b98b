"""A GPU by name, by numbers, and by both."""

import math

import pytest

from vqgan.config.schema import ConfigError
from vqgan.planning.hardware import GPU, GPUS, gpu_of


def test_numbers_stand_in_the_place_of_the_names() -> None:
    assert gpu_of("h100") == GPUS["h100"]
    assert gpu_of("h100", memory=94) == GPU(94, GPUS["h100"].tflops, GPUS["h100"].bandwidth)
    assert gpu_of("h100", tflops=500, bandwidth=2) == GPU(GPUS["h100"].memory, 500, 2)
    assert gpu_of(None, memory=24) == GPU(24)


@pytest.mark.parametrize("number", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["memory", "tflops", "bandwidth"])
def test_no_gpu_has_nothing(name: str, number: float) -> None:
    with pytest.raises(ConfigError, match=f"--gpu-{name} {number:g}: a number above 0"):
        gpu_of("h100", **{name: number})


def test_something_tells_the_memory() -> None:
    with pytest.raises(ConfigError, match=r"give --gpu .*h100.*, or --gpu-memory"):
        gpu_of(None, tflops=100)
