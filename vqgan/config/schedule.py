"""Rates and weights as pure functions of the step."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vqgan.config.schema import Config


def _check_span(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value) and float(value[:-1]) <= 100:
        return value
    raise ValueError(f"give a number of steps or a share of the run such as 25%, received {value!r}")


Span = Annotated[int | str, BeforeValidator(_check_span)]
"""A length in a run: steps (500), or a share of the run ("25%"), which scales with its length."""


def in_steps(span: int | str, steps: int) -> float:
    """Returns the number of steps, not rounded, of a `Span` in a run of `steps`."""
    return float(span[:-1]) / 100 * steps if isinstance(span, str) else float(span)


class ScheduleConfig(Config, may_change=("shape", "warmup", "decay_from", "decay_until", "final_ratio")):
    """Learning rate schedule: a linear warm-up, a plateau, then a decay to `final_ratio` at the last step.

    For a run that may be extended, decay late (warmup-stable-decay): shape linear with decay_from 80%. If a run that
    has decayed is extended, its rate does not increase again.
    """

    shape: Literal["constant", "cosine", "exponential", "linear"] = "cosine"
    """Shape of the decay."""
    warmup: Span = 0
    """Warm-up from 0 to the full rate: steps, or a share of the run such as 5%."""
    decay_from: Span = 0
    """Start of the decay: steps, or a share of the run."""
    decay_until: Span = "100%"
    """End of the decay; the rate stays at `final_ratio` afterwards."""
    final_ratio: float = Field(0.1, gt=0, le=1)
    """Final rate as a fraction of the full rate."""


def learning_rate_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """Returns the factor of the full learning rate at `step` (0-based) of a run of `steps`."""
    warmup = in_steps(config.warmup, steps)
    if step < warmup:
        return (step + 1) / max(1.0, warmup)
    if config.shape == "constant":
        return 1.0
    begin = max(in_steps(config.decay_from, steps), warmup)
    # The last step has the final rate.
    end = in_steps(config.decay_until, steps) - 1
    progress = min(1.0, max(0.0, (step - begin) / max(1.0, end - begin)))
    match config.shape:
        case "linear":
            return 1 - progress * (1 - config.final_ratio)
        case "exponential":
            return config.final_ratio**progress
        case "cosine":
            return cosine(1.0, config.final_ratio, progress)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` to `end` as `progress` goes from 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def ramp(step: int, steps: int, start: int | str, warmup: int | str) -> float:
    """Returns a loss weight's factor: 0 before `start`, then linearly up to 1 within `warmup` (both `Span`s)."""
    begin, width = in_steps(start, steps), in_steps(warmup, steps)
    if step < begin:
        return 0.0
    return 1.0 if width <= 0 else min(1.0, (step - begin + 1) / width)
