"""A deep network's memory, concluded from shallow ones, is to the byte that of the network recorded whole."""

import functools
from typing import Any

import pytest

from parti.planning.generator import trace_generator_step
from tests.vqgan.planning.test_memory_against_measured import (
    ADAFACTOR,
    DECODER_ONLY,
    ENCODER_DECODER,
    STYLEGAN,
    TOKENIZER,
    VIT,
)
from tests.vqgan.planning.test_memory_against_measured import stage_1 as tokenizer_run
from tests.vqgan.planning.test_memory_against_measured import stage_2 as generator_run
from vqgan.planning.depth import shallow_networks
from vqgan.planning.parallelism import ParallelismPlan
from vqgan.planning.step_trace import StepTrace
from vqgan.planning.tokenizer import trace_tokenizer_step

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
DEEP = ENCODER_DECODER | {"encoder_depth": 5, "decoder_depth": 7}


def assert_same(concluded: StepTrace, whole: StepTrace) -> None:
    for parallelism in (ParallelismPlan("ddp", 1), ParallelismPlan("ddp", 8), ParallelismPlan("fsdp", 8)):
        assert parallelism.memory(concluded, True) == parallelism.memory(whole, True)
    assert concluded.flops == pytest.approx(whole.flops, rel=1e-12)
    assert concluded.parts == whole.parts


@pytest.mark.parametrize(
    ("model", "task", "pairs", "gradient_accumulation_steps"),
    [
        SLOW(DEEP | {"attention": "convolution"}, ADAFACTOR, 2, 3),
        (ENCODER_DECODER | {"encoder_depth": 4, "decoder_depth": 5}, {}, 1, 1),
        SLOW(DEEP | {"checkpoint_activations": True}, ADAFACTOR, 3, 1),
        SLOW(DEEP | {"dropout": 0.0}, {"optimizer": {"kind": "muon"}}, 2, 1),
        SLOW(DEEP | {"encoder_depth": 7, "decoder_depth": 2}, {"precision": "fp32"}, 2, 1),
        SLOW(DECODER_ONLY | {"depth": 12}, {}, 2, 1),
        SLOW(DECODER_ONLY | {"depth": 13, "checkpoint_activations": True}, {"precision": "fp16"}, 2, 2),
        SLOW(DECODER_ONLY | {"depth": 6, "attention": "full"}, {"optimizer": {"kind": "muon"}}, 1, 1),
    ],
)
def test_stage_2(model: dict[str, Any], task: dict[str, Any], pairs: int, gradient_accumulation_steps: int) -> None:
    config = generator_run(model, task, gradient_accumulation_steps)
    concluded, whole = (trace_generator_step(config, TOKENIZER, pairs, whole=whole) for whole in (False, True))
    assert_same(concluded, whole)


@pytest.mark.parametrize(
    ("task", "codes_from", "gradient_accumulation_steps"),
    [
        SLOW({"adversarial": STYLEGAN}, None, 1),
        SLOW({"adversarial": STYLEGAN, "precision": "fp32"}, None, 2),
        ({"adversarial": {"weight": 0.0}}, "a run", 1),
    ],
)
def test_stage_1(task: dict[str, Any], codes_from: str | None, gradient_accumulation_steps: int) -> None:
    stack = {"width": 32, "heads": 2, "mlp_width": 64}
    model = VIT | {"image_size": 64, "encoder": stack | {"depth": 4}, "decoder": stack | {"depth": 5}}
    config = tokenizer_run(model, task, gradient_accumulation_steps).model_copy(update={"codes_from": codes_from})
    concluded, whole = (trace_tokenizer_step(config, 2, whole=whole) for whole in (False, True))
    assert_same(concluded, whole)


def test_shallow_networks_sum_up_to_the_deep_one() -> None:
    stacks = {"text": "t" * 9, "image": "rcrrrcrrrcrx", "short": "ab"}
    networks = shallow_networks(stacks, 2)
    assert networks[0].stacks == {"text": list("tttt"), "image": list("rcrx"), "short": list("ab")}
    assert sum(network.times for network in networks) == 1
    for name, kinds in stacks.items():
        for kind in set(kinds):
            assert sum(network.times * list(network.stacks[name]).count(kind) for network in networks) == kinds.count(
                kind
            )
