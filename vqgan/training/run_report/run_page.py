"""The page of a run of any objective, or of several beside each other, from what their folders hold."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vqgan.config.not_default import not_default
from vqgan.config.schema import Config, flatten
from vqgan.data.source import printable
from vqgan.report.html import duration, render_page
from vqgan.report.metric_charts import compared_charts, is_share, run_charts, spoken
from vqgan.report.records import curves, images_per_second, training_seconds
from vqgan.system.atomic_files import write_file
from vqgan.training.run_report.next_commands import next_commands
from vqgan.training.run_report.recorded_run import RecordedRun, read_run, toolkit_version

PAGE_FILE = "report.html"
_TEMPLATE = Path(__file__).with_name("run.html.jinja")


class Row(NamedTuple):
    """A line of a table: its name, and a cell for each run."""

    name: str
    cells: list[str]


def write_run_page(folder: Path, config: Config) -> None:
    """Writes the page of a run that has just ended into its folder; where that fails, one line says so."""
    try:
        page = render_runs([read_run(folder, lambda _: type(config))])
        write_file(folder / PAGE_FILE, page.encode())
    except Exception as error:  # whatever it is: the run has ended well, and its model is saved
        reason = printable(" ".join(str(error).split()))
        sys.stderr.write(f"{folder / PAGE_FILE} was not written ({type(error).__name__}: {reason}); the run is whole\n")


def render_runs(runs: Sequence[RecordedRun]) -> str:
    """The page."""
    names = _distinct_names(runs)
    return render_page(
        _TEMPLATE,
        runs=list(zip(names, runs, strict=True)),
        groups=run_charts(runs[0].records, runs[0].objective)
        if len(runs) == 1
        else compared_charts({name: run.records for name, run in zip(names, runs, strict=True)}),
        sheets=[
            (name, sheet, run.objective) for name, run in zip(names, runs, strict=True) for sheet in run.shown_sheets()
        ],
        facts=_rows(runs, _facts),
        final=_rows(runs, _final_metrics),
        timing=_rows(runs, _timing),
        settings=_chosen_settings(runs[0]) if len(runs) == 1 else {},
        differences=setting_differences(runs),
        commands=[(name, next_commands(run)) for name, run in zip(names, runs, strict=True)],
        version=toolkit_version(),
    )


def setting_differences(runs: Sequence[RecordedRun]) -> list[Row]:
    """The settings in which runs differ; a setting that a run does not have is a dash."""
    flat = [flatten(run.settings) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings if name != "run_dir")
    rows = [Row(name, [str(settings.get(name, "-")) for settings in flat]) for name in names]
    return [row for row in rows if len(set(row.cells)) > 1]


def _chosen_settings(run: RecordedRun) -> Mapping[str, Any]:
    """Those that differ from the defaults; all, where this version does not know the config."""
    return flatten(run.settings) if run.config is None else not_default(run.config)


def _facts(run: RecordedRun) -> dict[str, str]:
    """What it was trained on, and how far."""
    data = run.settings.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    source = source if isinstance(source, dict) else {}
    where = next((str(source[key]) for key in ("path", "name", "folder") if source.get(key)), "")
    facts = {
        "objective": run.objective.replace("_", " "),
        "state": run.state(),
        "trained on": f"{source.get('kind', 'unknown')} {where}".strip(),
        "image tokenizer": run.setting("image_tokenizer"),
        "image size": _pixels(run.setting("data.transform.image_size")),
        "images a step": run.setting("data.batch_size"),
        "images seen": _images_seen(run),
        "model": run.setting("model.kind"),
        "quantizer": run.setting("model.quantizer.kind"),
        "precision": run.setting("task.precision"),
        "seed": run.setting("seed"),
    }
    if run.best is not None:
        best = run.best
        facts["best evaluation"] = (
            f"{spoken(best['metric'])} {shown(best['metric'], best['value'])} at step {best['step']:,}"
        )
    if run.unreadable_lines:
        facts["damaged"] = f"{run.unreadable_lines} lines of metrics.jsonl could not be read and are left out"
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _final_metrics(run: RecordedRun) -> dict[str, str]:
    """The last value of every metric."""
    final = {}
    for split in ("val", "train"):
        for name, points in curves(run.records, split).items():
            if name not in ("seconds", "images_per_second"):
                final[f"{spoken(name)}, {split}"] = shown(name, points[-1][1])
    return final


def _timing(run: RecordedRun) -> dict[str, str]:
    """Steps, rate and time, as the run counted them."""
    batch, seconds = run.setting("data.batch_size"), training_seconds(run.records)
    rate = images_per_second(run.records, batch) if isinstance(batch, int) else 0.0
    timing = {"steps": f"{run.done:,}", "time in training steps": duration(seconds) if seconds else ""}
    timing["images a second"] = f"{rate:,.3g}" if rate else ""
    for name, points in curves(run.records, "train").items():
        if "wait" in name or "memory" in name:
            mean = sum(value for _, value in points) / len(points)
            timing[f"{spoken(name)}, mean"] = shown(name, mean)
    return timing


def _rows(runs: Sequence[RecordedRun], values_of: Callable[[RecordedRun], dict[str, str]]) -> list[Row]:
    """A row for each name that any of the runs has."""
    columns = [values_of(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [Row(name, [column.get(name) or "-" for column in columns]) for name in names]


def _distinct_names(runs: Sequence[RecordedRun]) -> list[str]:
    """Names of their folders, or the paths where two folders have one name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def shown(name: str, value: float) -> str:
    """A metric's value for people."""
    return f"{value:.1%}" if is_share(name) and 0 <= value <= 1 else f"{value:,.4g}"


def _pixels(size: object) -> str:
    return f"{size} x {size} pixels" if size is not None else ""


def _images_seen(run: RecordedRun) -> str:
    batch = run.setting("data.batch_size")
    return f"{run.done * batch:,} in {run.done:,} steps" if isinstance(batch, int) and run.done else ""
