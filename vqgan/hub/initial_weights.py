"""Starting a network from the weights of another one: what fits is taken, what can be resized is, the rest is fresh.

What was done with each tensor is reported, so that nothing is left out silently.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vqgan.config.schema import ConfigError

Resizer = Callable[[Tensor, Tensor], Tensor | None]
"""(their tensor, our fresh one) -> a tensor of our shape; None where theirs is of no use."""

_LEAST_SHARE = 0.1
"""Share of the weights below which the source is another model: biases and a head may fit by chance."""
_SHOWN = 6
"""Names in a line."""


@runtime_checkable
class HasResizers(Protocol):
    """A module some of whose tensors mean something at another size too, such as positions on a grid."""

    def resizers(self) -> Mapping[str, Resizer]:
        """How, by the tensors' names in the module."""
        ...


@dataclass(frozen=True)
class InitialWeights:
    """What became of each tensor of a network that starts from another."""

    source: str
    """Where the weights are from."""
    taken: Mapping[str, int]
    """Name -> number of values: copied as they are."""
    resized: Mapping[str, str]
    """Name -> from and to which shape; equal shapes where rows were mapped."""
    fresh: Mapping[str, str]
    """Name -> why it keeps its random values."""
    unused: tuple[str, ...]
    """Tensors of the source that nothing here is called after."""

    def lines(self) -> list[str]:
        """For a person, at the start of a run."""
        total, values = len(self.taken) + len(self.resized) + len(self.fresh), sum(self.taken.values())
        lines = [f"start_from {self.source}: {len(self.taken)} of {total} tensors taken ({values:,} weights)"]
        if self.resized:
            lines.append("resized: " + _listed([f"{name} {how}" for name, how in self.resized.items()]))
        if self.fresh:
            lines.append("as initialized: " + _listed([f"{name} ({why})" for name, why in self.fresh.items()]))
        if self.unused:
            lines.append(f"not used of {self.source}: " + _listed(self.unused))
        return lines


@torch.no_grad()
def take_weights(
    network: nn.Module,
    theirs: Mapping[str, Tensor],
    source: str,
    *,
    remap: Mapping[str, Resizer] | None = None,
    leave: Mapping[str, str] | None = None,
) -> InitialWeights:
    """Fills `network` from the tensors of the same names in `theirs`; `source` names them in errors.

    Tensors of another shape go through the resizers of the modules that they are in (`HasResizers`). `remap` are
    resizers that are used at an equal shape too (rows of another vocabulary), `leave` names tensors that stay fresh,
    with the reason. Raises ConfigError where next to nothing fits: the source is another model.
    """
    remap, leave = remap or {}, leave or {}
    resizers = _resizers(network)
    taken: dict[str, int] = {}
    resized: dict[str, str] = {}
    fresh: dict[str, str] = {}
    ours = network.state_dict()
    for name, own in ours.items():
        if name in leave:
            fresh[name] = leave[name]
        elif name not in theirs:
            fresh[name] = f"{source} has none"
        elif name not in remap and theirs[name].shape == own.shape:
            own.copy_(theirs[name])
            taken[name] = own.numel()
        else:
            resizer = remap.get(name) or resizers.get(name)
            value = None if resizer is None else resizer(theirs[name].float(), own)
            if value is None:
                fresh[name] = f"{_shape(theirs[name])} there, {_shape(own)} here"
            else:
                own.copy_(value)
                resized[name] = f"{_shape(theirs[name])} to {_shape(own)}"
    fitting = sum(own.numel() for name, own in ours.items() if name in taken or name in resized)
    total = sum(own.numel() for own in ours.values())
    if fitting < _LEAST_SHARE * total:
        raise ConfigError(
            f"start_from: only {fitting:,} of {total:,} weights fit those of {source}; give a model of the same kind "
            "and width"
        )
    return InitialWeights(source, taken, resized, fresh, tuple(name for name in theirs if name not in ours))


def first_rows(theirs: Tensor, ours: Tensor) -> Tensor | None:
    """Resizer of learned positions of a sequence: as many as both have, the others stay fresh."""
    if theirs.shape[1:] != ours.shape[1:]:
        return None
    rows = min(len(theirs), len(ours))
    return torch.cat([theirs[:rows].to(ours), ours[rows:]])


def rows_by(source_rows: Mapping[int, int]) -> Resizer:
    """Resizer of an embedding or a head whose rows are a vocabulary's: our row -> their row; others stay fresh."""

    def resize(theirs: Tensor, ours: Tensor) -> Tensor | None:
        if theirs.shape[1:] != ours.shape[1:]:
            return None
        resized = ours.clone()
        pairs = [(row, there) for row, there in source_rows.items() if row < len(ours) and there < len(theirs)]
        if pairs:
            rows, there = (torch.tensor(side) for side in zip(*pairs, strict=True))
            resized[rows] = theirs.to(ours)[there]
        return resized

    return resize


def _resizers(network: nn.Module) -> dict[str, Resizer]:
    return {
        f"{prefix}.{name}" if prefix else name: resizer
        for prefix, module in network.named_modules()
        if isinstance(module, HasResizers)
        for name, resizer in module.resizers().items()
    }


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more
