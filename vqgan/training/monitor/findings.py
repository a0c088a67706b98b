"""What tasks of any objective say of the metrics of a stretch of training: lost numbers, and nothing learned."""

import math
from collections.abc import Mapping

_REMEDY = "lower task.optimizer.learning_rate, set task.optimizer.clip_norm, or set task.precision to fp32"
_LEARNS_BY = 0.1
"""Share of the run after which a network that learns at all does better than a guess."""


def not_finite(metrics: Mapping[str, float], remedy: str = _REMEDY) -> list[str]:
    """Metrics that are not finite, and steps that were skipped as their gradients were not; `remedy` names settings."""
    findings = []
    if lost := [name for name, value in metrics.items() if not math.isfinite(value)]:
        findings.append(f"not finite: {', '.join(lost)}; {remedy}.")
    share = metrics.get("skipped_share", 0.0)
    if share > 0:
        findings.append(f"{share:.1%} of the steps had no finite gradient and were skipped; if it goes on, {remedy}.")
    return findings


def no_better_than_guessing(
    metrics: Mapping[str, float], name: str, choices: int, things: str, more: str = ""
) -> list[str]:
    """A cross-entropy that is no lower than that of a uniform guess, once a tenth of the run is over.

    The metric called `name` is that of one among so many `choices`, which are called `things`; `more` is what helps
    beside the learning rate.
    """
    value, guess = metrics.get(name), math.log(choices)
    if value is None or not value >= guess or metrics.get("run_share", 0.0) < _LEARNS_BY:
        return []
    return [
        f"nothing is learned: {name} {value:.3f} is no better than guessing among {choices} {things}, {guess:.3f}; try "
        f"task.optimizer.learning_rate lower, then higher, with a longer task.optimizer.schedule.warmup{more}."
    ]
