"""Show runs on a page: what was trained, curves, samples, findings with what helps, timing, settings, next commands.

parti report RUN [RUN ...] [--out PAGE.html]

Reads what the run folders hold, while a run is under way too; several runs are compared. The page is one HTML file that
needs no network. A complete run has written its own already: RUN/report.html (loop.report).
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from parti.objectives import OBJECTIVES
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.options import Shortcuts
from vqgan.config.schema import Config
from vqgan.system.atomic_files import write_file, writing
from vqgan.training.run_report.recorded_run import read_run
from vqgan.training.run_report.run_page import PAGE_FILE, render_runs


class ReportConfig(Config):
    """What is shown, and where."""

    runs: tuple[str, ...] = Field(strict=False, min_length=1)
    """Run folders, in the order in which they are shown."""
    out: str | None = None
    """The page; without it report.html in the run folder, or of several runs report.html here."""


def main(argv: Sequence[str]) -> int:
    """Writes the page, and returns the exit code."""
    runs = Shortcuts(one_by_one=("runs",), words="runs")
    return run_command(argv, Command(ReportConfig, _report, __doc__, shortcuts=runs, has_file=False))


def _report(config: ReportConfig) -> int:
    def config_type_of(objective: str) -> type[Config] | None:
        return OBJECTIVES[objective].config_type if objective in OBJECTIVES else None

    runs = [read_run(Path(folder), config_type_of) for folder in config.runs]
    out = Path(PAGE_FILE) if len(runs) > 1 else runs[0].folder / PAGE_FILE
    if config.out is not None:
        out = Path(config.out)
    page = render_runs(runs)
    with writing(out, "run the same command again"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, page.encode())
    print_out(str(out))
    return ExitCode.DONE
