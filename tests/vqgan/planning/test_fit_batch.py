"""Micro-batches of a config on other numbers of GPUs."""

import pytest

from vqgan.config.schema import ConfigError
from vqgan.planning.fit_batch import fit_batch
from vqgan.training.loop import LoopConfig


@pytest.mark.parametrize(
    ("batch", "gradient_accumulation_steps", "gpus", "fitting"),
    [
        (8192, 512, 1, 512),
        (8192, 512, 16, 512),  # divides: as it is
        (8192, 512, 64, 8),  # 16 images at a time, as on one GPU
        (8192, 512, 512, 1),
        (8192, 512, 2048, 1),  # 4 images a GPU
        (96, 8, 16, 1),  # 12 at a time on one GPU; 6 here
        (100, 20, 10, 2),  # 5 at a time; a share of 10 goes in two
    ],
)
def test_no_more_at_a_time_than_on_one_gpu(
    batch: int, gradient_accumulation_steps: int, gpus: int, fitting: int
) -> None:
    loop, note = fit_batch(LoopConfig(gradient_accumulation_steps=gradient_accumulation_steps), batch, gpus)
    assert loop.gradient_accumulation_steps == fitting
    assert bool(note) == (fitting != gradient_accumulation_steps)
    if note:
        assert batch // gpus // fitting <= batch // gradient_accumulation_steps


@pytest.mark.parametrize(
    ("batch", "gpus", "advice"),
    [
        (8192, 12, "take 8 or 16 GPUs, or data.batch_size 8184 or 8196"),
        (7, 5, "take 1 or 7 GPUs, or data.batch_size 5 or 10"),
        (100, 128, "take 100 GPUs, or data.batch_size 128"),
        (1, 8, "take 1 GPU, or data.batch_size 8"),
    ],
)
def test_a_batch_that_does_not_divide_comes_with_what_does(batch: int, gpus: int, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit_batch(LoopConfig(gradient_accumulation_steps=512), batch, gpus)
    assert str(caught.value) == f"data.batch_size {batch} does not divide among {gpus} GPUs; {advice}"
