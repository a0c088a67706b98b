"""Logits of every position by cached steps, to be held against those of the full forward."""

import math

import torch
from torch import Tensor

from parti.models import Generator
from parti.models.generator import PromptGroup


def stepped(model: Generator, text: Tensor, image: Tensor, fixed_shapes: bool = False) -> Tensor:
    """Logits (B, N, V), one cached step after the other; a slot that was never written is NaN where it can be seen.

    With `fixed_shapes` positions are tensors, and every step has the same shapes.
    """
    state = model.start([PromptGroup(model.encode_text(text))])
    if not fixed_shapes:
        for cache in state.caches:
            cache.both.fill_(math.nan)
    before = torch.cat([torch.full_like(image[:, :1], model.start_code), image[:, :-1]], dim=1)
    positions = [torch.tensor(p) if fixed_shapes else p for p in range(image.shape[1])]
    return torch.stack([model.step(before[:, p], p, state) for p in positions], dim=1)
