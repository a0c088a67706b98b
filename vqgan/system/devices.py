"""Chooses the device of networks, and describes it in reports."""

import platform

import torch

from vqgan.errors import ConfigError


def usable_device(name: str | None, option: str, dtype: torch.dtype = torch.float32) -> torch.device:
    """Returns the device `name`, or the best one where it is None. `option` is what the user calls it: `--device`,
    `device:`.

    Raises ConfigError for one that this machine does not have, or that has no numbers of `dtype`.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{option} {name} cannot be used here: {reason[:200]}; cpu always can") from None
    return device


def device_name(device: torch.device) -> str:
    """Describes a device, for a protocol."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def arithmetic(device: torch.device) -> str:
    """Disables TF32 for convolutions, the default of recent GPUs, because it changes some codes."""
    rounded = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32, convolutions in TF32" if rounded else "float32"
