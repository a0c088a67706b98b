"""Metrics in words: what a reader of the plan meets for a small run, and for a large one."""

from dataclasses import replace

import pytest

from vqgan.planning.hardware import GPU
from vqgan.planning.parallelism import ParallelismPlan
from vqgan.planning.plan import Hardware, Plan
from vqgan.planning.report import as_text

SMALL = Plan(
    name="small",
    what="a run",
    parts={"weights": 10},
    frozen_parts={},
    hardware=Hardware(ParallelismPlan(), GPU(80, 100), mfu=0.5, price=1),
    at_a_time=8,
    batch=8,
    steps=1,
    codes_a_image=16,
    memory={"weights": 40},
    flops_a_image=1e9,
)
AN_HOUR = 3600 * 50e12


@pytest.mark.parametrize(
    ("hours", "cost"),
    [(0.001, "less than 0.01"), (0.0051, "0.01"), (0.5, "0.50"), (9.994, "9.99"), (9.996, "10"), (12_345.6, "12,346")],
)
def test_a_cost_is_never_nothing(hours: float, cost: str) -> None:
    plan = replace(SMALL, flops_a_image=hours * AN_HOUR / SMALL.batch)
    assert f"  {cost} at 1 a GPU-hour" in as_text(plan).splitlines()


@pytest.mark.parametrize(("at_a_time", "parts"), [(8, "one part"), (4, "2 parts")])
def test_parts_of_a_step(at_a_time: int, parts: str) -> None:
    assert f"a step of 8, in {parts}: " in as_text(replace(SMALL, at_a_time=at_a_time))
