"""Compute precision of networks in training; weights, moments and losses are always fp32."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype of matrix products; None: fp32."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Returns a new context of that arithmetic."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
