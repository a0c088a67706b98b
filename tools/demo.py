"""Train both stages on the embedded `shapes` images, draw prompts that training left out, and judge the images.

python tools/demo.py

Writes OUT/report.html, OUT/samples.png, OUT/reconstructions.png, OUT/metrics.json, and the runs OUT/vqgan and
OUT/parti. The same command again resumes. Every setting of both stages can be changed, with the stage in front:
--vqgan.loop.steps 200 --parti.data.batch_size 32. tools/train_vqgan.py --help and tools/train_parti.py --help list all.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from vqgan.cli.console import command
from vqgan.cli.exit_codes import ExitCode

NEXT_PROMPT = "a large yellow square above a small red triangle"
TIMES = ("total", "stage1", "stage2")


@command
def main(argv: list[str]) -> int:
    started = time.monotonic()
    options, overrides = build_parser().parse_known_args(argv)
    # Only now: to read torch from the disk belongs to the time that is measured, and --help does not need it.
    from parti.demo import load_demo, run_demo
    from vqgan.cli.command_line import print_error, print_out
    from vqgan.data.source import printable
    from vqgan.errors import UserError

    try:
        demo = load_demo(**vars(options), overrides=overrides)
        metrics = run_demo(demo, started, lambda text: print(printable(f"demo: {text}"), file=sys.stderr))
    except UserError as error:
        print_error(error)
        return 2
    if metrics is None:
        return ExitCode.INTERRUPTED
    print_out(summary(metrics, demo.out, demo.parti.run_dir))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def add(name: str, metavar: str, default: str | int, meaning: str) -> None:
        help_text = f"{meaning} [{default}]"
        parser.add_argument(name, type=type(default), default=default, metavar=metavar, help=help_text)

    add("--out", "FOLDER", "out/demo", "For the runs, the report, the images and the metrics")
    add("--seed", "NUMBER", 0, "Of both stages")
    add("--prompts", "COUNT", 256, "Validation prompts that are drawn, one image each, and judged; at least 2")
    add("--vqgan-config", "FILE", "configs/vqgan/shapes.yaml", "Settings of stage 1")
    add("--parti-config", "FILE", "configs/parti/shapes.yaml", "Settings of stage 2")
    return parser


def summary(metrics: dict[str, float], out: Path, run: str) -> str:
    """Returns the metrics, where to look, and what to try next."""
    time_of = {name: "{}:{:02}".format(*divmod(round(metrics[f"seconds_{name}"]), 60)) for name in TIMES}
    resumed = "; resumed: training steps alone" if metrics["resumed"] else ""
    sample = [_python(), "tools/sample.py", "--model", run, "--prompt", NEXT_PROMPT, "--out", str(out / "next")]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
