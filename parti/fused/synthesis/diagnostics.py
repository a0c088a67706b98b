"""Diagnoses the training of progressive text-to-image generation, with the settings that help.

Pure: the metrics of one log line in, findings out; a missing metric gives no finding.
"""

import math
from collections.abc import Mapping

from vqgan.training.monitor.findings import not_finite

_ZERO_LOSS = 0.05
"""Loss of a scale's discriminator below which it gives hardly any gradient; at chance it is 2 ln 2 = 1.39."""
_CHANCE = 0.05
"""Distance from 0.5 within which an accuracy counts as chance."""
_SETTLES = 300
"""Adversarial steps after which both networks should have learned something."""
_SILENT = 0.5
"""Nats below which an encoder encodes almost nothing of its images; the positions of two objects take about six."""
_RATES = "task.discriminator_optimizer.learning_rate"


def diagnose_synthesis(metrics: Mapping[str, float], sides: tuple[int, ...], adversarial_steps: float) -> list[str]:
    """Returns findings from the metrics of a log line (means since the line before); empty for a healthy run.

    `sides` are the image sizes in pixels; `adversarial_steps` counts the steps since the discriminators started.
    """
    remedy = f"lower task.optimizer.learning_rate or {_RATES}, set a clip_norm there, or set task.precision to fp32"
    findings = not_finite(metrics, remedy)
    if adversarial_steps < _SETTLES:
        return findings
    losses = {side: metrics[name] for side in sides if (name := f"loss_discriminator_{side}") in metrics}
    if won := [str(side) for side, loss in losses.items() if loss < _ZERO_LOSS]:
        findings.append(
            f"the discriminator wins at {', '.join(won)} pixels: its loss is nearly zero, so the generator gets hardly "
            f"any gradient from it; set task.adversarial.r1_gamma, lower {_RATES}, or narrow "
            "discriminators.scale.base_channels."
        )
    real, fake = metrics.get("real_accuracy"), metrics.get("fake_accuracy")
    if real is not None and fake is not None and abs((real + fake) / 2 - 0.5) < _CHANCE:
        findings.append(
            "the discriminator of the largest images is at chance: the generator learns nothing from it; raise "
            f"{_RATES} or lower task.adversarial.r1_gamma."
        )
    caption = metrics.get("caption_accuracy")
    if caption is not None and abs(caption - 0.5) < _CHANCE:
        findings.append(
            "the discriminators ignore captions: they accept a mismatched caption as often as the matching one, and "
            "images will not follow their prompts; set task.matching.kind to joint, or use larger batches."
        )
    if metrics.get("divergence", math.inf) < _SILENT:
        findings.append(
            "the encoder encodes almost nothing of its images, so the distance still favors a blur and noise "
            "changes nothing; lower task.divergence_weight."
        )
    return findings
