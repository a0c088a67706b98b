"""Latents with known modes, for the tests of quantizers."""

import torch
from torch import Tensor


def modes(count: int = 64, dim: int = 8) -> Tensor:
    """Directions: well separated points of the unit sphere."""
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(5)), dim=-1)


def mixture(centers: Tensor, size: int, seed: int, spread: float = 0.02) -> Tensor:
    """`size` draws, each near one of the centers."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(centers), (size,), generator=generator)
    return centers[chosen] + spread * torch.randn(size, centers.shape[1], generator=generator)


def modes_with_a_code_of_their_own(codes: Tensor, labels: Tensor) -> float:
    """Share of the modes (`labels`) whose latents mostly have a code that no other mode mostly has."""
    usual = [int(codes[labels == label].mode().values) for label in labels.unique()]
    return sum(usual.count(code) == 1 for code in usual) / len(usual)
