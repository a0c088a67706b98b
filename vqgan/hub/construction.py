"""Building a network whose sizes somebody else wrote, within a bound on what it may take.

`depth: 2147483648` is a valid whole number, and a network of it takes the machine's memory before anything can look
wrong. Each tensor that a module registers is counted while the network is built, so that building ends at the bound. A
network is built on the meta device first, where numbers take neither memory nor time; the task of a run, which reads
files while it is built and so cannot be built twice, is counted as well (`vqgan.training.run.fit`).
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from vqgan.config.schema import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
T = TypeVar("T")

_MODULES_PER_TENSOR = 20
"""Activations, dropout and containers have no tensors; no network has so many of them for each tensor that it has."""
_MOST_TENSORS = 5_000
"""Of a network that is trained here; Parti's 20B has some 2,000."""
_INITIAL = {Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_, Tensor.copy_}
"""What gives tensors their first values, besides torch.nn.init."""
_ALLOCATION = (
    *("allocate", "not enough memory", "out of memory", "overflow", "Storage size", "Invalid buffer size"),
    *("negative dimension", "invalid size"),
)
"""What torch's errors about impossible sizes have one of."""


class TooLargeError(ValueError):
    """A network larger than its bound; the message is one line."""


class _Bound(NamedTuple):
    """So many tensors, with so many numbers in all, and where that is from."""

    tensors: int
    numbers: int
    source: str


@contextmanager
def bounded(tensors: int, numbers: int, bound: str, *, meta: bool = False) -> Iterator[None]:
    """While it is open, what this thread builds may register so many tensors, with so many numbers in all; those on the
    meta device count alone or not at all.

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
        if value is not None and value.is_meta == meta:
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
    return _sized_first(build, _of_file(tensors, numbers))


def check_sizes(build: Callable[[], nn.Module], tensors: int, numbers: int) -> None:
    """`within_file` without the network: for one that a library builds from a file. It fits into memory, too.

    Raises TooLargeError.
    """
    for bound in (_of_file(tensors, numbers), _of_machine()):
        _build_on_meta(build, bound)


def within_memory(build: Callable[[], ModuleT]) -> ModuleT:
    """The network in fp32, if the machine's memory could hold it. Raises ConfigError where it could not."""
    try:
        return _sized_first(build, _of_machine())
    except TooLargeError as error:
        raise _too_large(error) from None


def counted_within_memory(build: Callable[[], T]) -> T:
    """What `build` makes, files read and all, if all of its networks together fit into the machine's memory.

    It ends where they do not, not before: each of a config's networks is best built by `within_memory` inside. Raises
    ConfigError.
    """
    try:
        with bounded(*_of_machine()):
            return build()
    except TooLargeError as error:
        raise _too_large(error) from None


def is_only_sized() -> bool:
    """Whether a network is built for its sizes alone: weights of others need not be read."""
    return torch.get_default_device().type == "meta"


def memory_of_machine() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sized_first(build: Callable[[], ModuleT], bound: _Bound) -> ModuleT:
    if detect_fake_mode() is not None:  # planned: its tensors take no memory, and may be another machine's
        return build()
    _build_on_meta(build, bound)
    with bounded(*bound):
        return build()


def _build_on_meta(build: Callable[[], nn.Module], bound: _Bound) -> None:
    with torch.random.fork_rng(devices=[]), torch.device("meta"), bounded(*bound, meta=True), _Uninitialized():
        build()


class _Uninitialized(TorchFunctionMode):
    """Passes over initial values, which take most of the time and are none on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = kwargs or {}
        if func in _INITIAL or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else values["tensor"]
        return func(*args, **values)


def _of_file(tensors: int, numbers: int) -> _Bound:
    there = f"its {tensors} stored tensors and {numbers:,} numbers allow"
    return _Bound(4 * tensors + 1000, 4 * numbers + 10_000_000, there)


def _of_machine() -> _Bound:
    memory = memory_of_machine()
    there = f"this machine's {memory / 2**30:.0f} GiB of memory and {_MOST_TENSORS:,} tensors allow"
    return _Bound(_MOST_TENSORS, memory // 4, there)


def _too_large(error: TooLargeError) -> ConfigError:
    return ConfigError(f"model: {error}; make it smaller, as tools/plan.py helps to")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
