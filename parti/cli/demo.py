"""Train both stages on the embedded `shapes` images, draw prompts that training left out, and judge the images.

parti demo

Writes OUT/report.html, OUT/samples.png, OUT/reconstructions.png, OUT/metrics.json, and the runs OUT/vqgan and
OUT/parti. The same command again resumes. Every setting of both stages can be changed, with the stage in front:
--vqgan.loop.steps 200 --parti.data.batch_size 32.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NEXT_PROMPT = "a large yellow square above a small red triangle"
TIMES = ("total", "stage1", "stage2")


def main(argv: Sequence[str]) -> int:
    """Trains what is missing, judges, and returns the exit code."""
    started = time.monotonic()
    # Only now: to read torch from the disk belongs to the time that is measured.
    from parti.demo import DemoConfig, load_demo, run_demo
    from vqgan.cli.command_line import Command, print_out, run_command
    from vqgan.cli.exit_codes import ExitCode
    from vqgan.data.source import printable

    def say(text: str) -> None:
        sys.stderr.write(printable(f"demo: {text}") + "\n")

    def run(config: DemoConfig) -> int:
        metrics = run_demo(config, started, say)
        if metrics is None:
            return ExitCode.INTERRUPTED
        print_out(summary(metrics, Path(config.out), config.parti.run_dir))
        return ExitCode.DONE

    demo = Command(DemoConfig, run, __doc__, load=lambda _, options: load_demo(options), has_file=False)
    return run_command(argv, demo)


def summary(metrics: dict[str, float], out: Path, run: str) -> str:
    """The metrics, where to look, and what to try next."""
    time_of = {name: "{}:{:02}".format(*divmod(round(metrics[f"seconds_{name}"]), 60)) for name in TIMES}
    resumed = "; resumed: training steps alone" if metrics["resumed"] else ""
    sample = [_python(), "-m", "parti", "sample", "--model", run, "--prompt", NEXT_PROMPT, "--out", str(out / "next")]
    return f"""
  prompts          {metrics["prompt_accuracy"]:6.1%}  of {metrics["prompts_checked"]} validation prompts drawn right
                   {metrics["random_pairing_accuracy"]:6.1%}  with prompts paired at random
  reconstructions  {metrics["reconstruction_accuracy"]:6.1%}  of {metrics["reconstructions_checked"]} still right
                   {metrics["psnr"]:6.2f}  dB
  codebook         {metrics["codebook_usage"]:6.1%}  in use, perplexity {metrics["codebook_perplexity"]:.0f}
  minutes          {time_of["total"]:>6}  (stage 1 {time_of["stage1"]}, stage 2 {time_of["stage2"]}{resumed})

  {out / "report.html"} shows it all on one page
  {out / "samples.png"}, {out / "reconstructions.png"}, {out / "metrics.json"}

Try another prompt:
  {shlex.join(sample)}
"""


def _python() -> str:
    """This interpreter as one types it here: .venv/bin/python."""
    python = Path(sys.executable)
    return str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else "python"
