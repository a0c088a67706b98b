"""Fingerprints: short hashes that identify networks and files, so that a replaced one is noticed.

That of a network covers its weights (names, types, shapes, values), independent of device and file format.
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
    """A part that a run reads but does not train: see `vqgan.training.task.Task.frozen_parts`."""

    fingerprints: Mapping[str, str]
    """Fingerprints by name."""
    is_only_shown: bool = False
    """Whether training does not depend on it: it is used for previews and saved models only, and may change."""
    remedy: str = ""
    """Where the part that the run started with may be found."""

    @classmethod
    def of(cls, network: nn.Module) -> "FrozenPart":
        """Wraps a network that training depends on."""
        return cls({"weights": network_fingerprint(network)})


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Returns the fingerprint of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        if value.is_meta:  # a traced step of the planner: there are no values
            continue
        value = value.cpu().contiguous()
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]


def network_fingerprint(network: nn.Module) -> str:
    """Returns the fingerprint of a network's state dict."""
    return weights_fingerprint(network.state_dict())


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Returns the fingerprint of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
