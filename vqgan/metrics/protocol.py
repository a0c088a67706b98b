"""A metric and how it was measured, so that two metrics are compared only if they may be.

Published tokenizers' metrics differ by the evaluator, the crop, the resize and the reference set, and rarely say which.
Here a metric cannot be written down without its protocol.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """One measured value. `value` is None exactly where `missing` says what it would have needed."""

    name: str
    value: float | None
    unit: str
    """"" for a plain number."""
    method: str
    """How it was measured, in a line for people."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The rest of its own protocol: evaluator, weights, sizes."""
    warning: str = ""
    """Why the value must not be compared with just any other."""
    missing: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.missing):
            raise ValueError(f"{self.name}: a metric has a value or says what is missing, received {self}")

    def as_json(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what metrics.json holds; `shared` is the part of the protocol that all metrics of a set have in
        common."""
        entry: dict[str, Any] = {"value": self.value, "unit": self.unit}
        for key in ("warning", "missing"):
            if text := getattr(self, key):
                entry[key] = text
        return entry | {"protocol": {"method": self.method, **self.details, **shared}}


class Reconstructions(NamedTuple):
    """A batch of images and what a tokenizer made of them: both rounded to 256 levels."""

    originals: Float[Tensor, "B 3 H W"]
    """In [-1, 1]."""
    reconstructions: Float[Tensor, "B 3 H W"]
    """In [-1, 1]."""
    original_levels: UInt8[Tensor, "B 3 H W"]
    reconstruction_levels: UInt8[Tensor, "B 3 H W"]
    codes: Int64[Tensor, "B N"]


@runtime_checkable
class Meter(Protocol):
    """Measures a set batch by batch."""

    def add(self, batch: Reconstructions) -> None:
        """Take a batch into account."""
        ...

    def metrics(self) -> Iterator[Metric]:
        """Returns the metrics of all batches so far."""
        ...


class AbsentMeter:
    """Stands for a meter that lacks something: its metrics have no value, and say why."""

    def __init__(self, names: Sequence[str], method: str, missing: str) -> None:
        self._names = names
        self._method = method
        self._missing = missing

    def add(self, batch: Reconstructions) -> None:
        """Nothing to do."""

    def metrics(self) -> Iterator[Metric]:
        for name in self._names:
            yield Metric(name, None, "", self._method, missing=self._missing)


def package(name: str) -> str:
    """Returns an installed package with its version: `torchmetrics 1.9.0`."""
    return f"{name} {importlib.metadata.version(name)}"


def table(metrics: Sequence[Metric]) -> str:
    """Name, value and method of each metric, a line each; below it what to beware of and what is missing."""
    shown = ["missing" if metric.value is None else f"{_short(metric.value)} {metric.unit}" for metric in metrics]
    widths = [max(map(len, column)) for column in ([metric.name for metric in metrics], shown)]
    lines = []
    for metric, value in zip(metrics, shown, strict=True):
        lines.append(f"  {metric.name:<{widths[0]}}  {value:<{widths[1]}}  {metric.method}")
    # Metrics that lack the same thing, or deserve the same warning, share a note.
    notes: dict[str, list[str]] = {}
    for metric in metrics:
        for text in (metric.warning, metric.missing):
            if text:
                notes.setdefault(text, []).append(metric.name)
    lines += [f"  {', '.join(names)}: {text}" for text, names in notes.items()]
    return "\n".join(lines)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}" if abs(value) < 1000 else f"{value:.1f}"
