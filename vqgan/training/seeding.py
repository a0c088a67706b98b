"""Seeds of everything that draws from torch's global generator: initial weights and dropout."""

import torch


def seed_everything(seed: int, process_index: int) -> None:
    """Seed torch. Weights must start equal on all processes: rank 0 is broadcast, so ranks may differ here."""
    torch.manual_seed(seed + 1_000_003 * process_index)
