"""Activation checkpointing: a layer stores only its input and is recomputed in the backward pass (Chen et al.,
1604.06174)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(layer: nn.Module, wanted: bool) -> Callable[..., Any]:
    """Returns `layer`, checkpointed if `wanted` and gradients are enabled; dropout is the same in both passes."""
    return partial(checkpoint, layer, use_reentrant=False) if wanted and torch.is_grad_enabled() else layer
