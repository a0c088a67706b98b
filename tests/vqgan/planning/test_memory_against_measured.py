"""The rehearsed memory of whole training steps against what the same steps take on this CPU: within 15%."""

import functools
from typing import Any

import pytest
import torch

from parti.models import GENERATORS
from parti.next_token.next_token_task import NextTokenTask
from parti.next_token.train_next_token import TrainPartiConfig
from parti.planning.generator import MaskedPairs, tokens_of, trace_generator_step
from tests.measured import most_memory
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.config.schema import validate
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import build_autoencoder
from vqgan.planning.step_trace import images
from vqgan.planning.tokenizer import all_at_once, trace_tokenizer_step
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.parallel.distributed import build_accelerator

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)

SIZE = 144  # 18 x 18 codes: enough that attention goes by the fused kernel
STACK = {"depth": 1, "width": 32, "heads": 2, "mlp_width": 64}
VIT = {
    "image_size": SIZE,
    "patch_size": 8,
    "encoder": STACK,
    "decoder": STACK,
    "quantizer": {"codebook_size": 256, "code_dim": 8},
}
ENCODER_DECODER = {"encoder_depth": 1, "decoder_depth": 2, "width": 128, "heads": 4, "mlp_width": 512}
DECODER_ONLY = {"kind": "decoder_only", "depth": 2, "width": 128, "heads": 4, "mlp_width": 512, "dropout": 0.1}
ADAFACTOR = {"optimizer": {"kind": "adafactor"}}


def stage_1(model: dict[str, Any], task: dict[str, Any], gradient_accumulation_steps: int = 1) -> TrainVQGANConfig:
    perceptual = {"weight": 0.1, "backbone": "squeeze", "weights": "random"}
    values = {
        "data": {"transform": {"image_size": model["image_size"]}},
        "model": model,
        "task": {"perceptual": perceptual} | task,
        "loop": {"gradient_accumulation_steps": gradient_accumulation_steps},
    }
    return validate(TrainVQGANConfig, values, "test")


TOKENIZER = stage_1(VIT, {})


def stage_2(model: dict[str, Any], task: dict[str, Any], gradient_accumulation_steps: int = 1) -> TrainPartiConfig:
    values = {
        "image_tokenizer": "none",
        "data": {"transform": {"image_size": SIZE}},
        "text": {"kind": "unigram", "vocab_size": 500, "length": 32},
        "model": model,
        "task": task,
        "loop": {"gradient_accumulation_steps": gradient_accumulation_steps},
    }
    return validate(TrainPartiConfig, values, "test")


def run_generator(config: TrainPartiConfig, pairs: int) -> NextTokenTask:
    tokenizer = ImageTokenizer(build_autoencoder(TOKENIZER.model))
    tokens = tokens_of(config, tokenizer)
    generator = GENERATORS[config.model.kind](config.model, tokens)
    task = NextTokenTask(config.task, generator, MaskedPairs(tokenizer, tokens, False), build_accelerator(), 10, 0)
    for step in range(2):
        metrics = task.train_step([images(pairs, SIZE) for _ in range(config.loop.gradient_accumulation_steps)], step)
        assert not metrics["skipped"], "a step that is left out makes no moments"
    return task


@pytest.mark.parametrize(
    ("model", "task", "pairs", "gradient_accumulation_steps"),
    [
        SLOW(ENCODER_DECODER, {}, 4, 1),
        SLOW(ENCODER_DECODER | {"attention": "convolution"}, ADAFACTOR | {"precision": "fp32"}, 3, 1),
        (ENCODER_DECODER | {"attention": "convolution"}, ADAFACTOR, 2, 3),
        SLOW(ENCODER_DECODER | {"dropout": 0.0}, {"optimizer": {"kind": "muon"}}, 2, 1),
        (ENCODER_DECODER | {"checkpoint_activations": True}, {}, 4, 1),
        SLOW(DECODER_ONLY, {}, 2, 1),
        (DECODER_ONLY | {"attention": "full"}, ADAFACTOR | {"precision": "fp32"}, 2, 2),
        SLOW(DECODER_ONLY | {"checkpoint_activations": True}, ADAFACTOR, 3, 1),
    ],
)
def test_stage_2(model: dict[str, Any], task: dict[str, Any], pairs: int, gradient_accumulation_steps: int) -> None:
    config = stage_2(model, task, gradient_accumulation_steps)
    step = trace_generator_step(config, TOKENIZER, pairs, kernels="cpu")
    measured = most_memory(lambda: run_generator(config, pairs))
    assert step.footprint.peak().total == pytest.approx(measured, rel=0.15)


def run_tokenizer(config: TrainVQGANConfig, count: int) -> AutoencoderTask:
    torch.manual_seed(0)
    task = AutoencoderTask(all_at_once(config.task), build_autoencoder(config.model), build_accelerator(), 10, 0)
    for step in range(2):
        batches = [images(count, config.model.image_size) for _ in range(config.loop.gradient_accumulation_steps)]
        for batch in batches:
            batch.images.uniform_(-1, 1)
        assert not task.train_step(batches, step)["skipped"]
    return task


STYLEGAN = {"weight": 0.1, "discriminator": {"kind": "stylegan2", "channels": [8, 12, 16, 16, 16]}}
PATCHGAN = {"weight": 0.1, "loss": "hinge", "r1_gamma": 0.0, "discriminator": {"kind": "patchgan", "base_channels": 8}}
CNN = {
    "kind": "cnn_vqgan",
    "image_size": 64,
    "base_channels": 16,
    "channel_multipliers": [1, 2, 2],
    "attention_resolutions": [16],
    "groups": 8,
    "latent_channels": 16,
    "quantizer": {"codebook_size": 128, "code_dim": 16},
}
DVAE = {
    "kind": "dvae",
    "image_size": 64,
    "hidden": 16,
    "blocks_per_group": 1,
    "decoder_width": 16,
    "quantizer": {"kind": "gumbel", "codebook_size": 128, "latent_dim": 128, "code_dim": 16},
}


@pytest.mark.parametrize(
    ("model", "task", "count", "gradient_accumulation_steps"),
    [
        (VIT | {"image_size": 64, "patch_size": 4}, {"adversarial": STYLEGAN}, 3, 1),
        SLOW(VIT | {"image_size": 64, "patch_size": 4}, {"adversarial": STYLEGAN, "precision": "fp32"}, 2, 4),
        SLOW(CNN, {"adversarial": PATCHGAN}, 3, 1),
        SLOW(DVAE, {"adversarial": {"weight": 0.0}, "precision": "fp32"}, 3, 1),
    ],
)
def test_stage_1(model: dict[str, Any], task: dict[str, Any], count: int, gradient_accumulation_steps: int) -> None:
    config = stage_1(model, task, gradient_accumulation_steps)
    step = trace_tokenizer_step(config, count, kernels="cpu")
    measured = most_memory(lambda: run_tokenizer(config, count))
    assert step.footprint.peak().total == pytest.approx(measured, rel=0.15)
