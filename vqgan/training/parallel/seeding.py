"""Seeds of everything that draws from torch's global generator: initial weights and dropout."""

import torch

SEEDS = 2**43
"""A run's seed is below this: times a million and three, plus a step, it is a seed of torch's (under 2**63)."""


def seed_everything(seed: int, process_index: int) -> None:
    """Seed torch. Weights must start equal on all processes: rank 0 is broadcast, so ranks may differ here."""
    torch.manual_seed(seed + 1_000_003 * process_index)
