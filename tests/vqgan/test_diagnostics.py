"""Every finding has a case that brings it and healthy metrics that do not; every key that it names exists."""

import math
import re
from collections.abc import Mapping
from typing import get_args

import pytest

from vqgan.config.schema import describe_fields
from vqgan.diagnostics import diagnose_tokenizer
from vqgan.quantizers import QUANTIZERS, QuantizerConfig
from vqgan.train_tokenizer import TrainVQGANConfig

SHAPES = {
    "loss": 0.0364,
    "learning_rate": 5e-3,
    "gradient_norm": 0.53,
    "quantization_error": 0.0023,
    "batch_usage": 0.99,
    "batch_perplexity": 16.5,
    "batch_entropy": 2.8,
    "dead_codes": 0.01,
    "code_norm_spread": 0.25,
}
"""Flat backgrounds: nearly all codes are used, and few of them most of the time (configs/vqgan/shapes.yaml)."""
OPENMOJI = {
    "loss": 0.0504,
    "gradient_norm": 0.2419,
    "batch_usage": 0.3,
    "batch_perplexity": 217.0,
    "dead_codes": 0.2,
    "loss_discriminator": 1.3153,
    "real_accuracy": 0.54,
    "fake_accuracy": 0.6925,
    "discriminator_gradient_norm": 1.4682,
}
"""Measured, configs/vqgan/openmoji.yaml at step 1600."""
CONTINUOUS = {"loss": 0.5986, "gradient_norm": 1.8487, "code_norm_spread": 0.25, "run_share": 0.02}
"""The first line of the same run: no code yet, no discriminator yet."""
BLURRED = {"real_accuracy": 0.97, "fake_accuracy": 0.98, "loss_discriminator": 0.5, "skipped_steps": 3.0}
"""The discriminator is right, without being sure of it; steps that were skipped long ago."""
CODEBOOK = {"batch_usage": 0.5, "batch_perplexity": 200.0, "dead_codes": 0.1, "code_norm_spread": 0.3}


def diagnose(
    metrics: Mapping[str, float],
    codebook_size: int = 1024,
    codes_per_batch: int = 4096,
    clip_norm: float | None = 1.0,
    discriminator_steps: int | None = None,
) -> list[str]:
    return diagnose_tokenizer(
        metrics,
        codebook_size=codebook_size,
        codes_per_batch=codes_per_batch,
        clip_norm=clip_norm,
        discriminator_steps=discriminator_steps,
    )


SICK: list[tuple[dict[str, float], str, str]] = [
    ({"loss": math.nan, "loss_l2": math.inf}, "not finite: loss, loss_l2;", "task.precision"),
    ({"skipped_share": 0.06}, "6.0% of the steps had no finite gradient", "task.optimizer.clip_norm"),
    ({"gradient_norm": 25.0}, "exploding gradient", "task.optimizer.learning_rate"),
    (
        CODEBOOK | {"batch_usage": 0.01},
        "a batch hits 10 codes where 1024 could be",
        "task.codebook_maintenance.restart_every",
    ),
    (
        CODEBOOK | {"batch_usage": 0.4, "batch_perplexity": 5.0},
        "codebook collapse",
        "task.codebook_maintenance.unquantized",
    ),
    ({"batch_perplexity": 5.0}, "codes worth 5 where", "model.quantizer.l2_normalize"),
    (CODEBOOK | {"dead_codes": 0.7}, "70% of the codes are dead", "model.quantizer.codebook_size"),
    (CODEBOOK | {"code_norm_spread": 1.5}, "code norms spread", "model.quantizer.l2_normalize"),
    (
        {"real_accuracy": 0.99, "fake_accuracy": 0.98, "loss_discriminator": 0.05},
        "the discriminator wins: it tells 98%",
        "task.adversarial.r1_gamma",
    ),
    ({"real_accuracy": 0.53, "fake_accuracy": 0.51, "loss_discriminator": 1.385}, "at chance", "No error"),
    ({"real_accuracy": 0.98, "fake_accuracy": 0.03}, "at chance", "task.adversarial.weight"),
]


@pytest.mark.parametrize(("metrics", "words", "remedy"), SICK)
def test_each_illness_is_one_finding_with_its_remedy(metrics: dict[str, float], words: str, remedy: str) -> None:
    (finding,) = diagnose(metrics)
    assert words in finding
    assert remedy in finding
    assert "\n" not in finding


@pytest.mark.parametrize("metrics", [{}, SHAPES, CONTINUOUS, BLURRED, CODEBOOK])
def test_healthy_metrics_give_no_finding(metrics: dict[str, float]) -> None:
    assert diagnose(metrics) == []


def test_a_larger_codebook_than_a_batch_has_codes_is_judged_by_what_the_batch_can_hit() -> None:
    assert diagnose(OPENMOJI, codebook_size=2048) == []
    large = CODEBOOK | {"batch_usage": 0.04}
    assert diagnose(large, codebook_size=16384, codes_per_batch=1024) == []
    assert len(diagnose(large, codebook_size=16384, codes_per_batch=16384)) == 1


def test_what_depends_on_a_setting_is_silent_without_it() -> None:
    assert diagnose({"gradient_norm": 1e6}, clip_norm=None) == []


@pytest.mark.parametrize("case", range(len(SICK)))
def test_a_run_that_has_just_begun_is_judged_by_lost_numbers_alone(case: int) -> None:
    metrics, words, _ = SICK[case]
    lost = "not finite" in words or "finite gradient" in words
    assert len(diagnose(metrics | {"step": 50})) == lost
    assert diagnose(metrics | {"step": 500}) == diagnose(metrics)


@pytest.mark.parametrize("metrics", [SICK[-3][0], SICK[-2][0]])
def test_a_discriminator_that_has_just_joined_is_not_judged(metrics: dict[str, float]) -> None:
    assert diagnose(metrics, discriminator_steps=50) == []
    assert diagnose(metrics, discriminator_steps=5000) == diagnose(metrics) != []


def test_every_key_that_a_finding_names_exists() -> None:
    known = {field.name for field in describe_fields(TrainVQGANConfig)}
    named = {key for metrics, _, _ in SICK for text in diagnose(metrics) for key in re.findall(r"\w+(?:\.\w+)+", text)}
    named = {key for key in named if not re.match(r"\d", key)}
    assert len(named) > 10
    assert named - known == set()


CONFIGS = {config.model_fields["kind"].default: config for config in get_args(get_args(QuantizerConfig)[0])}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_remedy_for_a_collapse_fits_the_quantizer(kind: str) -> None:
    """Each key that it names is one of that quantizer's, or of the codebook's care where there is a codebook."""
    collapsed = {"step": 500.0, "batch_usage": 0.01, "batch_perplexity": 3.0}
    settings = {"codebook_size": 1024, "codes_per_batch": 4096, "clip_norm": None}
    (finding,) = diagnose_tokenizer(collapsed, quantizer=kind, **settings)
    own = {field.name for field in describe_fields(CONFIGS[kind], "model.quantizer.")}
    named = re.findall(r"(?:model|task)(?:\.[a-z0-9_]+)+", finding)
    assert named
    for key in named:
        assert key in (own if key.startswith("model.") else {field.name for field in describe_fields(TrainVQGANConfig)})
    assert CONFIGS[kind].has_codebook or "codebook_maintenance" not in finding
