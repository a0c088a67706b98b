"""What goes wrong in the training of progressive text-to-image generation, in plain words and with the keys that help.

Pure: the metrics of one log line in, findings out; one that is missing gives no finding.
"""

import math
from collections.abc import Mapping

from vqgan.training.monitor.diagnostics_log import about_skipped_steps

_ZERO_LOSS = 0.05
"""A discriminator's loss a scale below which it has nothing left to teach; at chance it is 2 ln 2 = 1.39."""
_CHANCE = 0.05
"""Distance from one half of an accuracy that says nothing."""
_SETTLES = 300
"""Steps of the game after which both players should know something."""
_SILENT = 0.5
"""Nats below which an encoder says next to nothing of its images; where two objects stand takes about six."""
_RATES = "task.discriminator_optimizer.learning_rate"


def diagnose_synthesis(metrics: Mapping[str, float], sides: tuple[int, ...], adversarial_steps: float) -> list[str]:
    """Findings from a log line's metrics (means since the line before); empty for a healthy run.

    `sides` are those of the images; `adversarial_steps`, the steps since the discriminators joined.
    """
    remedy = f"lower task.optimizer.learning_rate or {_RATES}, set a clip_norm there, or set task.precision to fp32"
    findings = []
    if lost := [name for name, value in metrics.items() if not math.isfinite(value)]:
        findings.append(f"not finite: {', '.join(lost)}; {remedy}.")
    findings += about_skipped_steps(metrics, remedy)
    if adversarial_steps < _SETTLES:
        return findings
    losses = {side: metrics[name] for side in sides if (name := f"loss_discriminator_{side}") in metrics}
    if won := [str(side) for side, loss in losses.items() if loss < _ZERO_LOSS]:
        findings.append(
            f"the discriminator wins at {', '.join(won)} pixels: its loss is nearly zero, and tells the generator "
            f"hardly how to do better; set task.adversarial.r1_gamma, lower {_RATES}, or narrow "
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
            "the discriminators do not read captions: a wrong one seems as right to them as the right one, and "
            "images will not follow their prompts; set task.matching.kind to joint, or use larger batches."
        )
    if metrics.get("divergence", math.inf) < _SILENT:
        findings.append(
            "the encoder says next to nothing of its images, so that the distance still asks for a blur and noise "
            "changes nothing; lower task.divergence_weight."
        )
    return findings
