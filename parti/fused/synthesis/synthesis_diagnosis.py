"""What goes wrong in the training of progressive text-to-image generation, in plain words and with the keys that help.

Pure: the figures of one log line in, findings out; one that is missing gives no finding.
"""

import math
from collections.abc import Mapping

from vqgan.training.findings import about_skipped_steps

_ZERO_LOSS = 0.05
"""A discriminator's loss a scale below which it has nothing left to teach; at chance it is 2 ln 2 = 1.39."""
_CHANCE = 0.05
"""Distance from one half of an accuracy that says nothing."""
_SETTLES = 300
"""Steps of the game after which both players should know something."""
_SILENT = 0.5
"""Nats below which an encoder says next to nothing of its pictures; where two objects stand takes about six."""
_RATES = "task.discriminator_optimiser.learning_rate"


def diagnose_synthesis(figures: Mapping[str, float], sides: tuple[int, ...], game_steps: float) -> list[str]:
    """Findings from a log line's figures (means since the line before); empty for a healthy run.

    `sides` are those of the pictures; `game_steps`, the steps since the discriminators joined.
    """
    remedy = f"lower task.optimiser.learning_rate or {_RATES}, set a clip_norm there, or set task.precision to fp32"
    findings = []
    if lost := [name for name, value in figures.items() if not math.isfinite(value)]:
        findings.append(f"not finite: {', '.join(lost)}; {remedy}.")
    findings += about_skipped_steps(figures, remedy)
    if game_steps < _SETTLES:
        return findings
    losses = {side: figures[name] for side in sides if (name := f"loss_discriminator_{side}") in figures}
    if won := [str(side) for side, loss in losses.items() if loss < _ZERO_LOSS]:
        findings.append(
            f"the discriminator wins at {', '.join(won)} pixels: its loss is nearly zero, and tells the generator "
            f"hardly how to do better; set task.game.r1_gamma, lower {_RATES}, or narrow "
            "discriminators.scale.base_channels."
        )
    real, fake = figures.get("real_accuracy"), figures.get("fake_accuracy")
    if real is not None and fake is not None and abs((real + fake) / 2 - 0.5) < _CHANCE:
        findings.append(
            "the discriminator of the largest pictures is at chance: the generator learns nothing from it; raise "
            f"{_RATES} or lower task.game.r1_gamma."
        )
    caption = figures.get("caption_accuracy")
    if caption is not None and abs(caption - 0.5) < _CHANCE:
        findings.append(
            "the discriminators do not read captions: a wrong one seems as right to them as the right one, and "
            "pictures will not follow their prompts; set task.matching.kind to joint, or use larger batches."
        )
    if figures.get("divergence", math.inf) < _SILENT:
        findings.append(
            "the encoder says next to nothing of its pictures, so that the distance still asks for a blur and noise "
            "changes nothing; lower task.divergence_weight."
        )
    return findings
