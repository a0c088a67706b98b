"""Building a network whose sizes somebody else wrote, within a bound on what it may take.

`depth: 2147483648` is a valid whole number, and a network of it takes the machine's memory before anything can look
wrong. Each tensor that a module registers is counted while the network is built, so that building ends at the bound.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from vqgan.config.schema import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_MODULES_PER_TENSOR = 20
"""Activations, dropout and containers have no tensors; no network has so many of them for each tensor that it has."""
_MOST_TENSORS = 30_000
"""Of a network that is trained here; Parti's 20B has some 2,000."""
_ALLOCATION = ("allocate", "not enough memory", "out of memory", "overflow", "Storage size", "Invalid", "negative")
"""What torch's errors about impossible sizes have one of."""


class TooLargeError(ValueError):
    """A network larger than its bound; the message is one line."""


@contextmanager
def bounded(tensors: int, numbers: int, bound: str) -> Iterator[None]:
    """While it is open, what this thread builds may register so many tensors, with so many numbers in all.

    Raises TooLargeError where it is more, or where torch cannot allocate one of them; `bound` says where the bound is
    from.
    """
    left = {"tensors": tensors, "numbers": numbers, "modules": tensors * _MODULES_PER_TENSOR}
    thread = threading.get_ident()

    def take(what: str, count: int) -> None:
        if threading.get_ident() != thread:
            return
        left[what] -= count
        if left[what] < 0:
            raise TooLargeError(f"the sizes in the config are those of a network with more {what} than {bound}")

    def tensor(_: nn.Module, __: str, value: Tensor | None) -> None:
        if value is not None:
            take("tensors", 1)
            take("numbers", value.numel())

    def module(_: nn.Module, __: str, ___: nn.Module | None) -> None:
        take("modules", 1)

    handles: list[Any] = [
        registration.register_module_parameter_registration_hook(tensor),
        registration.register_module_buffer_registration_hook(tensor),
        registration.register_module_module_registration_hook(module),
    ]
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _ALLOCATION):
            raise
        raise TooLargeError(
            f"the sizes in the config are those of a tensor that does not fit: {_line(error)}"
        ) from None
    finally:
        for handle in handles:
            handle.remove()


def within_file(build: Callable[[], ModuleT], tensors: int, numbers: int) -> ModuleT:
    """The network, whose weights lie in a file with so many tensors and numbers.

    Built on the meta device first, which takes no memory for numbers. A network has more than its file: what is
    computed is not stored, and a tensor that is used twice is stored once. Raises TooLargeError.
    """
    bound = (
        4 * tensors + 1000,
        4 * numbers + 10_000_000,
        f"its {tensors} stored tensors and {numbers:,} numbers allow",
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta"), bounded(*bound):
        build()
    with bounded(*bound):
        return build()


def within_memory(build: Callable[[], ModuleT]) -> ModuleT:
    """The network in fp32, if the machine's memory could hold it. Raises ConfigError where it could not."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bound = f"this machine's {memory / 2**30:.0f} GiB of memory and {_MOST_TENSORS:,} tensors allow"
    try:
        with bounded(_MOST_TENSORS, memory // 4, bound):
            return build()
    except TooLargeError as error:
        raise ConfigError(f"model: {error}; make it smaller, as tools/plan.py helps to") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
