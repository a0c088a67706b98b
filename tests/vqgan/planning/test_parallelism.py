"""What each of several GPUs holds, by strategy."""

import pytest

from parti.planning.generator import trace_generator_step
from tests.vqgan.planning.test_memory_against_measured import ENCODER_DECODER, TOKENIZER, stage_2
from vqgan.config.schema import ConfigError
from vqgan.planning.parallelism import ParallelismPlan
from vqgan.planning.step_trace import StepTrace


@pytest.fixture(scope="module")
def step() -> StepTrace:
    config = stage_2(ENCODER_DECODER, {"optimizer": {"kind": "adamw"}}, gradient_accumulation_steps=2)
    return trace_generator_step(config, TOKENIZER, 1)


def test_ddp_adds_buffers_as_large_as_the_gradients(step: StepTrace) -> None:
    one, two = (ParallelismPlan("ddp", gpus).memory(step, True) for gpus in (1, 2))
    assert two.pop("exchange buffers") == 4 * step.parameters
    assert one == two
    assert one["weights"] == one["gradients"] == one["averaged copy"] == 4 * step.parameters
    assert one["optimizer state"] == pytest.approx(8 * step.parameters, rel=1e-3)


def test_fsdp_divides_what_belongs_to_weights(step: StepTrace) -> None:
    whole, divided = ParallelismPlan("ddp", 1).memory(step, True), ParallelismPlan("fsdp", 4).memory(step, True)
    for kind in ("weights", "averaged copy", "optimizer state", "gradients"):
        assert divided[kind] == pytest.approx(whole[kind] / 4, abs=1)
    assert "weights in 16 bits" not in divided
    assert divided["gathered weights"] == step.largest_block + 4 * step.outside_blocks


def test_hybrid_divides_within_a_node(step: StepTrace) -> None:
    assert ParallelismPlan("hybrid", 64, 8).memory(step, True) == ParallelismPlan("fsdp", 8).memory(step, True)


def test_hybrid_needs_whole_nodes_or_less_than_one() -> None:
    assert ParallelismPlan("hybrid", 4, 8).parts == 4
    assert ParallelismPlan("ddp", 64, 5).parts == 1
    with pytest.raises(ConfigError, match=r"--gpus 64 are no whole nodes of --gpus-a-node 5, .*; give a multiple"):
        ParallelismPlan("hybrid", 64, 5)
