"""All metrics of a model in one file: each with its whole protocol, so that it can be quoted alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.config.schema import ConfigError
from vqgan.metrics.protocol import Metric, table


@dataclass(frozen=True)
class MetricsReport:
    """All metrics of a model, and what their protocols have in common."""

    model: Mapping[str, Any]
    """What was measured, in full."""
    shared: Mapping[str, Any]
    """The part of the protocol that all metrics have in common."""
    metrics: Sequence[Metric]
    head: Sequence[str]
    """Lines above the table on the console."""

    def as_json(self) -> dict[str, Any]:
        """Returns what metrics.json holds."""
        metrics = {metric.name: metric.as_json(self.shared) for metric in self.metrics}
        return {"model": dict(self.model), "metrics": metrics}

    def text(self) -> str:
        """Returns a table for the console."""
        return "\n".join([*self.head, "", table(self.metrics)])


def write_report(report: MetricsReport, out: str | Path) -> None:
    """Write metrics.json. Raises ConfigError where it cannot be written."""
    path = make_room(out)
    try:
        path.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error.strerror or error}") from None


def make_room(out: str | Path) -> Path:
    """Returns the folder for a file. Called before the work too: an hour's metrics shall not be lost to a wrong path.

    Raises ConfigError where it cannot be made, or `out` is itself a folder.
    """
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error.strerror or error}") from None
    if path.is_dir():
        raise ConfigError(f"out: {str(out)!r} is a folder; give the name of a file in it, such as metrics.json")
    return path
