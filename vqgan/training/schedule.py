"""The learning rate as a pure function of the step."""

import math
from typing import Literal

from pydantic import Field

from vqgan.config import Config


class ScheduleConfig(Config):
    """How the learning rate goes: a linear warm-up, a plateau, then a decay to `final_ratio` at the last step."""

    shape: Literal["constant", "cosine", "exponential", "linear"] = "cosine"
    """The decay's curve."""
    warmup_steps: int = Field(0, ge=0)
    """Steps from 0 to the full rate."""
    decay_from_share: float = Field(0.0, ge=0, lt=1)
    """Share of the run at which the decay begins."""
    final_ratio: float = Field(0.1, gt=0, le=1)
    """Rate at the end, as a share of the full rate."""


def learning_rate_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """What multiplies the full learning rate at `step` (0-based) of a run of `steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_from = max(config.decay_from_share * steps, config.warmup_steps)
    progress = min(1.0, max(0.0, (step - decay_from) / max(1.0, steps - 1 - decay_from)))
    match config.shape:
        case "constant":
            return 1.0
        case "linear":
            return 1 - progress * (1 - config.final_ratio)
        case "exponential":
            return config.final_ratio**progress
        case "cosine":
            return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def ramp(step: int, steps: int, start_share: float, warmup_share: float) -> float:
    """A loss weight's factor: 0 before `start_share` of the run, then linearly up to 1 within `warmup_share`."""
    begin = start_share * steps
    if step < begin:
        return 0.0
    width = warmup_share * steps
    return 1.0 if width <= 0 else min(1.0, (step - begin + 1) / width)
