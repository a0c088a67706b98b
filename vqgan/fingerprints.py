"""Fingerprints: short names of what a thing is, so that another one in its place is noticed.

A network's is of its weights (names, types, shapes, values), wherever they lie and in whatever file they came.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_DIGITS = 16
"""64 bits: enough against chance, and a line still holds several."""


@dataclass(frozen=True)
class FrozenPart:
    """Something that a run reads and does not train: see `vqgan.training.task.Task.frozen_parts`."""

    fingerprints: Mapping[str, str]
    """Of each thing about it that matters, by what it is called."""
    is_only_shown: bool = False
    """Whether training does not depend on it: it makes what is looked at and shipped, and may change."""
    remedy: str = ""
    """Where the one that the run began with may be found."""

    @classmethod
    def of(cls, network: nn.Module) -> "FrozenPart":
        """Wraps a network that training depends on."""
        return cls({"weights": network_fingerprint(network)})


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        if value.is_meta:  # a rehearsal: there are no values
            continue
        value = value.cpu().contiguous()
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]


def network_fingerprint(network: nn.Module) -> str:
    """Of all that a network's state dict has."""
    return weights_fingerprint(network.state_dict())


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
