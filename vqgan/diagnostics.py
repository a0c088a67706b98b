"""Diagnoses stage-1 training: problems in plain words, with the config keys that help.

Pure: the metrics of one log line in, findings out. A missing metric (no codes before quantization starts, no
discriminator before its start) gives no finding. The thresholds are far from the values of healthy runs, because false
alarms are soon ignored.
"""

import math
from collections.abc import Mapping

from vqgan.training.monitor.findings import not_finite

_COLLAPSED_USAGE = 0.1
"""Share of the codes that a batch could hit; healthy runs hit more than half, collapsed ones a handful."""
_POOR_USAGE, _COLLAPSED_PERPLEXITY = 0.5, 0.02
"""Shares of the same. Flat backgrounds alone take the perplexity of a healthy codebook down to 1.5%, so that a low one
says something only where many codes are not hit at all."""
_MOSTLY_DEAD = 0.5
"""Share of the codebook; the rest of the codes carry the images, at the price of a smaller codebook."""
_SPREAD_NORMS = 1.0
"""Standard deviation over mean of the code norms; Gaussian codes have 0.76 in one dimension, 0.36 in four."""
_WINNING_ACCURACY, _WINNING_LOSS = 0.95, 0.35
"""Of the discriminator: for real and for reconstructed images; and half of the lowest loss at chance (vanilla)."""
_CHANCE_MARGIN = 0.05
"""Distance of the discriminator's mean accuracy from one half."""
_RUN_SETTLES = 100
"""Steps: fresh weights have large gradients, and latents that lie so close together that few codes are hit."""
_DISCRIMINATOR_SETTLES = 500
"""Steps: a fresh discriminator is at chance, then wins against blurred images as a matter of course."""
_EXPLODING_NORM = 10.0
"""Mean gradient norm over clip_norm. Some clipping at nearly every step is what many good recipes do."""

_LEARNING = "task.optimizer.learning_rate"


_PLACE_CODES = (
    "set task.codebook_maintenance.restart_every (about 20), begin with a task.codebook_maintenance.unquantized "
    "phase, set "
    "model.quantizer.l2_normalize, or lower model.quantizer.code_dim"
)
_COLLAPSE_REMEDIES = {
    "gumbel": "lower model.quantizer.temperature.start, or raise model.quantizer.kl_weight.start",
    "finite_scalar": "take fewer model.quantizer.levels",
    "lookup_free": "raise model.quantizer.entropy_weight or model.quantizer.diversity, or lower model.quantizer.bits",
    "residual": "set task.codebook_maintenance.restart_every (about 20), or begin with a "
    "task.codebook_maintenance.unquantized phase",
}
"""What brings codes back into use, by the quantizer's `kind`."""


def diagnose_tokenizer(
    metrics: Mapping[str, float],
    *,
    codebook_size: int,
    codes_per_batch: int,
    clip_norm: float | None,
    discriminator_steps: int | None = None,
    quantizer: str = "nearest",
) -> list[str]:
    """Returns findings from a log line's metrics (means since the line before, and `step`); empty for a healthy run.

    codebook_size: number of codes V. codes_per_batch: codes in one step's batch, over all processes. clip_norm: the
    autoencoder's. discriminator_steps: steps since the discriminator joined, where known. quantizer: its `kind`, since
    each collapses for reasons of its own.
    """
    step = metrics.get("step", math.inf)
    findings = _lost_numbers(metrics)
    if step >= _RUN_SETTLES:
        findings += _gradient(metrics, clip_norm)
        findings += _codebook(metrics, codebook_size, codes_per_batch, _COLLAPSE_REMEDIES.get(quantizer, _PLACE_CODES))
    if min(step, math.inf if discriminator_steps is None else discriminator_steps) >= _DISCRIMINATOR_SETTLES:
        findings += _discriminator(metrics)
    return findings


def _lost_numbers(metrics: Mapping[str, float]) -> list[str]:
    remedy = (
        f"lower {_LEARNING} (with a discriminator also task.adversarial.optimizer.learning_rate), set "
        "task.optimizer.clip_norm, task.precision to fp32, or lower task.adversarial.r1_gamma where r1_penalty grows"
    )
    return not_finite(metrics, remedy)


def _gradient(metrics: Mapping[str, float], clip_norm: float | None) -> list[str]:
    norm = metrics.get("gradient_norm")
    if norm is None or clip_norm is None or not norm > _EXPLODING_NORM * clip_norm:
        return []
    return [
        f"exploding gradient: its norm is {norm:.3g} on average, far above task.optimizer.clip_norm, so that every "
        f"step is cut down to a small part; lower {_LEARNING}, or lengthen task.optimizer.schedule.warmup."
    ]


def _codebook(metrics: Mapping[str, float], size: int, codes_per_batch: int, remedy: str) -> list[str]:
    findings = []
    reachable = min(size, codes_per_batch)
    usage, perplexity = metrics.get("batch_usage"), metrics.get("batch_perplexity")
    hit = None if usage is None else usage * size
    few = hit is not None and hit < _COLLAPSED_USAGE * reachable
    uneven = (
        perplexity is not None
        and perplexity < _COLLAPSED_PERPLEXITY * reachable
        and (hit is None or hit < _POOR_USAGE * reachable)
    )
    if few or uneven:
        shown = f"{hit:.0f} codes" if hit is not None else f"codes worth {perplexity:.0f}"
        findings.append(
            f"codebook collapse: a batch hits {shown} where {reachable} could be hit, and most of them rarely; "
            f"{remedy}."
        )
    elif metrics.get("dead_codes", 0.0) > _MOSTLY_DEAD:
        findings.append(
            f"{metrics['dead_codes']:.0%} of the codes are dead: nothing has hit them for a while; {remedy}, or lower "
            "model.quantizer.codebook_size."
        )
    spread = metrics.get("code_norm_spread")
    if spread is not None and spread > _SPREAD_NORMS:
        findings.append(
            f"code norms spread: their standard deviation is {spread:.2f} times their mean, so that a few long or "
            f"short codes win or lose by length alone; set model.quantizer.l2_normalize, or lower {_LEARNING}."
        )
    return findings


def _discriminator(metrics: Mapping[str, float]) -> list[str]:
    real, fake = metrics.get("real_accuracy"), metrics.get("fake_accuracy")
    if real is None or fake is None:
        return []
    loss = metrics.get("loss_discriminator", 0.0)
    if min(real, fake) > _WINNING_ACCURACY and loss < _WINNING_LOSS:
        return [
            f"the discriminator wins: it tells {min(real, fake):.0%} of the images right, and "
            "its loss hardly tells the decoder how to do better; raise task.adversarial.r1_gamma, lower "
            "task.adversarial.optimizer.learning_rate, lower task.adversarial.weight, or move task.adversarial.start "
            "to later."
        ]
    if abs((real + fake) / 2 - 0.5) < _CHANCE_MARGIN:
        return [
            "the discriminator is at chance: its loss gives the decoder nothing to learn. No error: where the "
            "reconstructions are good enough, task.adversarial.weight 0 saves its time; else raise "
            "task.adversarial.optimizer.learning_rate or lower task.adversarial.r1_gamma."
        ]
    return []
