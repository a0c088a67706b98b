"""Activation checkpointing: a layer keeps its input alone and is computed once more in the backward pass (Chen et al.,
1604.06174)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(layer: nn.Module, wanted: bool) -> Callable[..., Any]:
    """`layer`, computed again in the backward pass if that is `wanted` and there will be one; dropout is the same."""
    return partial(checkpoint, layer, use_reentrant=False) if wanted and torch.is_grad_enabled() else layer
