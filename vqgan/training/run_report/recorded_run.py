"""What a run folder holds, read for its page: any file of it may be missing, cut off or damaged."""

import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vqgan.config.schema import Config, ConfigError, flatten, read_yaml, validate
from vqgan.report.html import png_uri
from vqgan.report.records import Records, last_step
from vqgan.system.checksums import SUMS_FILE
from vqgan.training.run_folder import BEST_FILE, RunFolder

_LARGEST_SHEET = 16 << 20
"""Bytes of an image on the page."""
_DIGITS = r"-?(\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?|\b(nan|inf)\b)"


class Sheet(NamedTuple):
    """An image of samples/."""

    title: str
    uri: str
    width: int
    height: int


@dataclass
class Finding:
    """A finding or an event of a run: what was seen, what helps, and when."""

    what: str
    remedy: str
    first: int
    last: int
    count: int = 1


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder tells it."""

    folder: Path
    name: str
    settings: Mapping[str, Any]
    """The recorded config, nested."""
    config: Config | None
    """The same, validated; None where this version does not accept it."""
    records: Records = ()
    unreadable_lines: int = 0
    """Lines of metrics.jsonl that are no record."""
    sheets: list[Path] = field(default_factory=list)
    """Previews, the first one first."""
    best: Mapping[str, Any] | None = None
    """The best evaluation, as best/ says."""

    @property
    def objective(self) -> str:
        return str(self.settings.get("objective", "unknown"))

    @property
    def steps(self) -> int:
        """Length of the run as it was asked for; 0 where the config does not say."""
        steps = self.setting("loop.steps")
        return steps if isinstance(steps, int) else 0

    @property
    def done(self) -> int:
        """The last step that metrics.jsonl knows of."""
        return last_step(self.records)

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; None where there is none."""
        return flatten(self.settings).get(name)

    def state(self) -> str:
        """Whether it came to its end."""
        if self.steps and self.done >= self.steps:
            return f"complete at step {self.done:,}"
        if any(record.get("event") == "diverged" for record in self.records):
            return f"diverged after step {self.done:,} of {self.steps:,}"
        if not self.done:
            return "begun, without any metrics yet"
        if self.setting("loop.patience"):
            return f"at step {self.done:,} of at most {self.steps:,}"
        return f"unfinished: at step {self.done:,} of {self.steps:,}"

    def findings(self) -> list[Finding]:
        """What it reported, each with the steps of its first and last time; of reminders the last one's words."""
        found: dict[str, Finding] = {}
        for record in self.records:
            text, step = record.get("finding", record.get("seen")), record.get("step")
            if record.get("split") != "event" or not isinstance(text, str) or not isinstance(step, int):
                continue
            if record.get("event") != "finding":
                text = f"{str(record.get('event')).replace('_', ' ')}: {text}"
            # The remedy is behind the first semicolon or full stop of a finding (vqgan/diagnostics.py).
            what, _, remedy = re.sub(r"(?<=[a-z0-9)])\. (?=[A-Z])", "; ", text, count=1).partition("; ")
            words = re.sub(_DIGITS, "#", text)
            before = found.pop(words, None)
            first, count = (step, 1) if before is None else (before.first, before.count + 1)
            found[words] = Finding(what.rstrip("."), remedy, first, step, count)
        return sorted(found.values(), key=lambda finding: finding.first)

    def shown_sheets(self) -> list[Sheet]:
        """The first, the middle and the last preview that can be read, and the last chart of the codes."""
        sheets = self.sheets
        chosen = sorted({0, len(sheets) // 2, len(sheets) - 1}) if sheets else []
        codes = sorted((self.folder / "samples").glob("codes-*.png"))[-1:]
        return [sheet for path in [*(sheets[at] for at in chosen), *codes] if (sheet := _sheet(path)) is not None]

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files of model/, as they were noted when they were written."""
        model, found = self.folder / "model", {}
        for sums in sorted(model.rglob(SUMS_FILE)):
            for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
                checksum, gap, name = line.partition("  ")
                if gap:
                    found[(sums.parent.relative_to(model) / name).as_posix()] = checksum
        return found


def read_run(folder: Path, config_type_of: Callable[[str], type[Config] | None]) -> RecordedRun:
    """Reads a run folder; `config_type_of` gives the config class of an objective.

    Raises ConfigError where the folder holds no run.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        there = "config.yaml is missing" if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"no run in {folder}: {there}; give the run_dir of a training command")
    settings = read_yaml(path)
    config_type = config_type_of(str(settings.get("objective")))
    config = None
    if config_type is not None:
        try:
            config = validate(config_type, settings, str(path))
        except ConfigError:  # written by another version
            config = None
    run = RunFolder(folder)
    records = run.read_metrics()
    lines = (
        len([line for line in run.metrics.read_bytes().split(b"\n") if line.strip()]) if run.metrics.is_file() else 0
    )
    return RecordedRun(
        folder=folder,
        name=folder.resolve().name,
        settings=settings,
        config=config,
        records=records,
        unreadable_lines=lines - len(records),
        sheets=sorted(run.samples.glob("step-*.png")),
        best=_best(run.best / BEST_FILE),
    )


def toolkit_version() -> str:
    """The version of the toolkit that is installed."""
    try:
        return importlib.metadata.version("parti-toolkit")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: run from its source"


def _best(path: Path) -> Mapping[str, Any] | None:
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = (
        isinstance(best, dict) and isinstance(best.get("step"), int) and isinstance(best.get("value"), int | float)
    )
    return best if is_whole and isinstance(best.get("metric"), str) else None


def _sheet(path: Path) -> Sheet | None:
    """None for a file that is missing, no image, cut off or too large for a page."""
    kind, _, number = path.stem.partition("-")
    title = f"step {int(number):,}" if number.isdigit() else path.stem
    try:
        if path.stat().st_size > _LARGEST_SHEET:
            return None
        content = path.read_bytes()
        with Image.open(path) as image:
            image.load()
            if image.format != "PNG":
                return None
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return Sheet(f"use of the codes, {title}" if kind == "codes" else title, png_uri(content), width, height)
