"""What each of several GPUs holds, by strategy."""

import pytest
from test_memory_against_measured import ENCODER_DECODER, TOKENIZER, stage_2

from parti.planning.generator import rehearse_generator
from vqgan.config import ConfigError
from vqgan.planning.division import Division
from vqgan.planning.rehearsed_step import Rehearsed


@pytest.fixture(scope="module")
def step() -> Rehearsed:
    config = stage_2(ENCODER_DECODER, {"optimiser": {"kind": "adamw"}}, micro_batches=2)
    return rehearse_generator(config, TOKENIZER, 1)


def test_ddp_adds_buffers_as_large_as_the_gradients(step: Rehearsed) -> None:
    one, two = (Division("ddp", gpus).memory(step, True) for gpus in (1, 2))
    assert two.pop("exchange buffers") == 4 * step.parameters
    assert one == two
    assert one["weights"] == one["gradients"] == one["averaged copy"] == 4 * step.parameters
    assert one["optimiser state"] == pytest.approx(8 * step.parameters, rel=1e-3)


def test_fsdp_divides_what_belongs_to_weights(step: Rehearsed) -> None:
    whole, divided = Division("ddp", 1).memory(step, True), Division("fsdp", 4).memory(step, True)
    for kind in ("weights", "averaged copy", "optimiser state", "gradients"):
        assert divided[kind] == pytest.approx(whole[kind] / 4, abs=1)
    assert "weights in 16 bits" not in divided
    assert divided["gathered weights"] == step.largest_block + 4 * step.outside_blocks


def test_hybrid_divides_within_a_node(step: Rehearsed) -> None:
    assert Division("hybrid", 64, 8).memory(step, True) == Division("fsdp", 8).memory(step, True)


def test_hybrid_needs_whole_nodes_or_less_than_one() -> None:
    assert Division("hybrid", 4, 8).parts == 4
    assert Division("ddp", 64, 5).parts == 1
    with pytest.raises(ConfigError, match=r"--gpus 64 are no whole nodes of --gpus-a-node 5, .*; give a multiple"):
        Division("hybrid", 64, 5)
