"""Micro-batches of a config on other numbers of GPUs."""

import pytest

from vqgan.planning.fitting import fitted
from vqgan.training.loop import LoopConfig


@pytest.mark.parametrize(
    ("batch", "micro_batches", "gpus", "fitting"),
    [
        (8192, 512, 1, 512),
        (8192, 512, 16, 512),  # divides: as it is
        (8192, 512, 64, 8),  # 16 pictures at a time, as on one GPU
        (8192, 512, 512, 1),
        (8192, 512, 2048, 1),  # 4 pictures a GPU
        (96, 8, 16, 1),  # 12 at a time on one GPU; 6 here
        (100, 20, 10, 2),  # 5 at a time; a share of 10 goes in two
        (8192, 512, 3, 512),  # no number of parts helps: the error of the run is the error of the plan
    ],
)
def test_no_more_at_a_time_than_on_one_gpu(batch: int, micro_batches: int, gpus: int, fitting: int) -> None:
    loop, note = fitted(LoopConfig(micro_batches=micro_batches), batch, gpus)
    assert loop.micro_batches == fitting
    assert bool(note) == (fitting != micro_batches)
    if note:
        assert batch // gpus // fitting <= batch // micro_batches
