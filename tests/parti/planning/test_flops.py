"""The formulas of stage 2's arithmetic: against torch's own count on a small model, and against papers.md D.2's
table."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parti.models import GENERATORS, DecoderOnlyConfig, EncoderDecoderConfig, Generator, GeneratorConfig, TokenSpace
from parti.next_token.train_next_token import TrainPartiConfig
from parti.planning.flops import code_flops, forward_flops, mean_keys, prompt_flops, training_flops
from parti.planning.generator import generator_without_weights, parts_of
from parti.planning.sampling import sampling_cost
from parti.sampling.generate import SamplingConfig
from vqgan.config.schema import load_config

CONFIGS = Path(__file__).parents[3] / "configs" / "parti"
SMALL = TokenSpace(text_vocab_size=48, text_length=16, image_vocab_size=64, image_grid=(6, 6))
PARTI = TokenSpace(text_vocab_size=16_000, text_length=128, image_vocab_size=8192, image_grid=(32, 32))


def parti(name: str) -> Generator:
    return generator_without_weights(load_config(TrainPartiConfig, CONFIGS / f"parti_{name}.yaml"), PARTI)


@pytest.mark.parametrize(
    "config",
    [
        EncoderDecoderConfig(encoder_depth=2, decoder_depth=3, width=32, heads=2, mlp_width=64),
        DecoderOnlyConfig(depth=3, width=32, heads=2, mlp_width=64, attention="full"),
    ],
)
def test_formula_and_torchs_count_agree(config: GeneratorConfig) -> None:
    """Short sequences go by plain products, which torch counts; it computes all scores, the formula those wanted."""
    model = GENERATORS[config.kind](config, SMALL)
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.ones(1, 16, dtype=torch.int64), torch.zeros(1, 36, dtype=torch.int64))
    forward = counter.get_total_flops()
    depth, width, length = len(model.layer_kinds), 32, 36
    states = length if isinstance(config, EncoderDecoderConfig) else 16 + length
    unwanted = 4 * width * depth * (states**2 - states * (states + 1) / 2)
    if isinstance(config, DecoderOnlyConfig):
        assert logits.text is not None
    assert forward_flops(model) == pytest.approx(forward - unwanted)
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, 16, dtype=torch.int64), torch.zeros(1, 36, dtype=torch.int64)).image.sum().backward()
    # The first layers' inputs are embeddings and want no gradient: not quite three times.
    text_head = 0 if isinstance(config, EncoderDecoderConfig) else 2 * 2 * 32 * 48 * 16
    assert counter.get_total_flops() + text_head == pytest.approx(3 * forward, rel=0.1)
    assert training_flops(model) == 3 * forward_flops(model)


@pytest.mark.parametrize(
    ("name", "of_a_code", "prompt", "image"),
    [("350m", 0.369e9, 45.9e9, 0.46e12), ("750m", 1.074e9, 58.8e9, 1.26e12), ("3b", 4.261e9, 233e9, 4.79e12)],
)
def test_the_table_of_the_spec(name: str, of_a_code: float, prompt: float, image: float) -> None:
    model = parti(name)
    width, depth = model.image_head_layer().in_features, len(model.layer_kinds)
    keys = mean_keys("convolution", (32, 32), 11)
    in_attention = 4 * width * depth * (keys + 128)
    assert code_flops(model) - in_attention == pytest.approx(of_a_code, rel=2e-3)
    assert prompt_flops(model) == pytest.approx(prompt, rel=0.02)
    # The table's image has full attention's 1,024 keys for every code.
    full = forward_flops(model) + 1024 * 4 * width * depth * (1024 - keys)
    assert forward_flops(model) < image < full * 1.01


def test_the_parts_are_those_of_the_spec() -> None:
    d = 1024
    assert parts_of(parti("350m")) == {
        "text encoder blocks": 12 * (12 * d**2 + 13 * d),
        "decoder blocks": 12 * (16 * d**2 + 19 * d),
        "heads": 8192 * d + 8192,
        "last norms": 4 * d,
        "embeddings": (16_000 + 128) * d + (8193 + 1024) * d,
    }


def test_the_cache_and_what_a_step_reads_are_those_of_the_spec() -> None:
    cost = sampling_cost(parti("350m"), SamplingConfig(precision="bf16"))
    ring, cross = 7.8 * 2**20, 6 * 2**20
    assert cost.cache == pytest.approx(ring + cross, rel=5e-3)
    in_fp32 = 2 * 8192 * 1024  # the head's second half: the SPEC has it in bf16
    assert cost.step - cost.cache - in_fp32 == pytest.approx(0.37e9, rel=5e-3)
    guided = sampling_cost(parti("350m"), SamplingConfig(precision="bf16", guidance_scale=1.2))
    assert guided.flops == 2 * cost.flops
    assert cost.seconds(3.35e12) == pytest.approx(0.113 + 1024 * (cost.cache + in_fp32) / 3.35e12, rel=0.02)
