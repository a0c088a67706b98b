"""A training step on tensors without memory, and a record of what memory they would have had.

The code that runs is the run's own, on fake tensors: shapes and dtypes without numbers. So the record follows every
option, loss and kernel of it, and needs no formula of its own. What it records is each storage's size, birth and end,
and the arithmetic of every matrix product, convolution and attention.

Fake tensors stand for CPU tensors, because a GPU's need a build of torch for GPUs. Where the two keep different things
for the backward pass, what a GPU keeps is recorded: attention never holds its scores, and dropout's masks are bytes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from vqgan.layers import attend

Kernels = Literal["gpu", "cpu"]
"""Of which kind of device memory is recorded."""

Kind = Literal[
    "weights",
    "frozen networks",
    "averaged copy",
    "gradients",
    "optimizer state",
    "weights in 16 bits",
    "activations",
    "in the update",
]
"""What memory is for. weights in 16 bits: autocast's copies; in the update: what an optimizer's step makes and drops.
"""

KINDS: tuple[Kind, ...] = get_args(Kind)


class Peak(NamedTuple):
    """The moment of most memory: bytes in all and by kind."""

    total: int
    by_kind: dict[Kind, int]

    @staticmethod
    def shared(whole: Mapping[Kind, float], shares: Mapping[Kind, float]) -> "Peak":
        """Returns the peak of a process that holds only a share of some kinds."""
        by_kind = {kind: round(size * shares.get(kind, 1.0)) for kind, size in whole.items()}
        return Peak(sum(by_kind.values()), by_kind)


class _Allocation:
    """One storage: size, the moments between which it is there, what it is for, and whether it is there throughout."""

    __slots__ = ("birth", "bytes", "end", "kind", "stays", "storage")

    def __init__(self, storage: torch.UntypedStorage, birth: int, kind: Kind) -> None:
        # Not a weakref of Python's: those of storages break torch 2.13's memory.
        self.storage = StorageWeakRef(storage)
        self.birth, self.bytes, self.kind = birth, storage.nbytes(), kind
        self.end: int | None = None
        self.stays = False


class StepRecorder(TorchDispatchMode):
    """Inside of `with fake_step() as recording:` all that is done with tensors is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Of matrix products, convolutions and attention so far: two for a multiplication with its sum."""
        self.truth = False
        """Sets the answer of data-dependent questions: no while networks are built (no random number has to
        be sampled again), yes in training (gradients are finite)."""
        self.told = 1.0
        """Share of what a mask chooses from that it chooses."""
        self._now = 0
        self._lives: list[_Allocation] = []
        self._living: dict[int, _Allocation] = {}
        self._mortal: dict[int, _Allocation] = {}  # of the living those that do not stay
        self._bytes_living = self._bytes_unchecked = 0
        self._updating = False
        self._windows: list[tuple[int, str]] = []
        self._unchecked = _UNCHECKED

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._now += 1
        if func is torch.ops.aten._local_scalar_dense.default:
            return _number(args[0], self.truth)
        if func is torch.ops.aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            args = (args[0], _numbers(args[1], self.told))
        if func is torch.ops.aten.nonzero.default:
            return torch.stack(_places(args[0], self.told), 1)
        result = func(*args, **(kwargs or {}))
        kind: Kind = "in the update" if self._updating else "activations"
        if func is torch.ops.aten._to_copy.default and self._kind_of(args[0]) in ("weights", "frozen networks"):
            kind = "weights in 16 bits"
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, kind)
        count = _FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=result))
        return result

    def call(self, tensors: Iterable[Tensor | None], kind: Kind, stays: bool = True) -> None:
        """Say what these are for; what stays counts from the start, such as moments that the first step makes."""
        for tensor in tensors:
            key = None if tensor is None else tensor.untyped_storage()._cdata
            life = None if key is None else self._living.get(key)
            if key is not None and life is not None:
                life.kind = kind
                life.stays |= stays
                if life.stays:
                    self._mortal.pop(key, None)

    def keep(self, kind: Kind) -> None:
        """All of this kind is there from the start, as gradients are from the second micro-batch on."""
        for life in self._lives:
            life.stays |= life.kind == kind

    def enter(self, window: str) -> None:
        """Starts a phase with this name, which may recur. `peaks` has the maximum of each."""
        self._windows.append((self._now, window))

    def exactly(self) -> None:
        """Look after each operation which storages have ended: for few of them, of which much is concluded."""
        self._unchecked = 0.0

    def peaks(self, since: int = 0, share: Mapping[Kind, float] | None = None) -> dict[str, dict[Kind, int]]:
        """Of all moments from `since` on that of each window at which most memory is held, by kind.

        Most where of each kind a process has only a `share`; the bytes are the whole ones.
        """
        self._record_free()
        shares = share or {}
        steps: dict[int, dict[Kind, int]] = defaultdict(lambda: defaultdict(int))
        for life in self._lives:
            if life.end is not None and life.end <= since and not life.stays:
                continue
            steps[since if life.stays else max(life.birth, since)][life.kind] += life.bytes
            if life.end is not None and not life.stays:
                steps[life.end][life.kind] -= life.bytes
        starts = [(moment, name) for moment, name in self._windows if moment > since]
        before = [name for moment, name in self._windows if moment <= since]
        window = before[-1] if before else ""
        now: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        most: dict[str, tuple[float, dict[Kind, int]]] = {}
        # A window begins after what the operation before it changed, and what is there then is there in it.
        for moment, begins, name in sorted([(m, True, name) for m, name in starts] + [(m, False, "") for m in steps]):
            if begins:
                window = name
            else:
                for kind, change in steps[moment].items():
                    now[kind] += change
            total = sum(now[kind] * shares.get(kind, 1.0) for kind in now)
            if window not in most or total > most[window][0]:
                most[window] = total, dict(now)
        return {name: at_most for name, (_, at_most) in most.items()}

    @property
    def now(self) -> int:
        """The moment."""
        return self._now

    def before_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Called before each optimizer's step: its gradients can now be identified."""
        self.call((parameter.grad for parameter in _parameters(optimizer)), "gradients", stays=False)
        self.enter("update")
        self._updating = True

    def after_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Called after it: its state can now be identified."""
        states = (optimizer.state.get(parameter, {}) for parameter in _parameters(optimizer))
        self.call((value for state in states for value in tree_iter(state) if isinstance(value, Tensor)), _STATE)
        self._updating = False
        self.enter("after the update")

    def _kind_of(self, tensor: Tensor) -> Kind | None:
        life = self._living.get(tensor.untyped_storage()._cdata)
        return None if life is None else life.kind

    def _see(self, tensor: Tensor, kind: Kind) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._living:
            return
        life = self._living[key] = self._mortal[key] = _Allocation(storage, self._now, kind)
        self._lives.append(life)
        self._bytes_living += life.bytes
        self._bytes_unchecked += life.bytes
        if self._bytes_unchecked > self._unchecked * self._bytes_living:
            self._record_free()

    def _record_free(self) -> None:
        """Look which storages have ended; not after each operation, as that takes long."""
        expired = torch.UntypedStorage._expired
        dead = [key for key, life in self._mortal.items() if expired(life.storage.cdata)]
        for key in dead:
            life = self._living.pop(key)
            del self._mortal[key]
            life.end = self._now
            del life.storage
            self._bytes_living -= life.bytes
        self._bytes_unchecked = 0


_UNCHECKED = 2e-3
"""Share of the memory that may come into being before it is looked what has ended: the error of a peak."""

_STATE: Kind = "optimizer state"


class _FakeOverrides(TorchFunctionMode):
    """What stands in for functions that tensors without memory, or a CPU in a GPU's place, would do otherwise."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.__deepcopy__:
            return _copy(*args)
        if func is Tensor.numpy:
            return _array(*args)
        if func is F.dropout and self._kernels == "gpu":
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def fake_step(kernels: Kernels = "gpu") -> Iterator[StepRecorder]:
    """Tensors that are made inside have no memory; what is done with them is recorded."""
    recording = StepRecorder()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        # A network without memory is where it is to be, and torch cannot move one.
        stack.enter_context(_replaced(nn.Module, "to", lambda network, *_, **__: network))
        stack.enter_context(recording)
        stack.enter_context(_FakeOverrides(kernels))
        if kernels == "gpu":
            # The plain form is for CPUs.
            stack.enter_context(_replaced(attend, "SHORT", -1))
        for hook in (
            register_optimizer_step_pre_hook(recording.before_update),
            register_optimizer_step_post_hook(recording.after_update),
        ):
            stack.callback(hook.remove)
        yield recording


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Another value of an attribute, for as long as the block takes."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Of the tensor alone: torch would copy with it the mode that gives it no memory, which breaks both."""
    if id(tensor) not in memo:
        fresh = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
    return memo[id(tensor)]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """With a mask of one byte an element, as on a GPU; a CPU keeps factors in the elements' dtype."""
    return torch.native_dropout(x, p, True)[0] if training and p and not inplace else x


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _array(tensor: Tensor) -> Any:
    """Returns the numbers where code of NumPy asks for them: all 1."""
    kind = "bool" if tensor.dtype is torch.bool else "float32" if tensor.is_floating_point() else "int64"
    return np.ones(tuple(tensor.shape), kind)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype is torch.bool


def _numbers(indices: Sequence[Tensor | None], share: float) -> list[Tensor | None]:
    """Returns the indices without masks, which have no numbers: so many of each as a mask that chooses `share` would
    give."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or not _is_mask(index):
            found.append(index)
        else:
            found += _places(index, share)
    return found


def _places(mask: Tensor, share: float) -> list[Tensor]:
    """Returns where a mask of this shape that chooses `share` is true, along each dimension."""
    chosen = max(1, math.ceil(share * mask.numel()))
    return [torch.empty(chosen, dtype=torch.int64, device=mask.device) for _ in range(mask.dim())]


def _number(tensor: Tensor, truth: bool) -> bool | float | int:
    if tensor.dtype is torch.bool:
        return truth
    return 1.0 if tensor.is_floating_point() else 1


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward_flops(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


_FLOPS: dict[Any, Callable[..., Any]] = dict(flop_registry) | {  # torch counts attention on a GPU alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
