"""Check a data set before training: read it as training would, and say what is wrong with it.

parti check-data --data FOLDER
parti check-data --data pairs.parquet --data.transform.image_size 128 --report check.json
parti check-data --config parti/shapes [--section.field value ...]

The last takes the options of a training command as they are: change the command's name, and it checks what that run
reads.

Counts, sizes and proportions, broken items by cause, images that are there twice or in both splits, captions against
the token limit, their alphabet; out/check_data.png (--image) shows the first batch of a run as its model sees it.
--data takes a folder of images, a tar, Parquet, Arrow, JSON or CSV file, a folder of these, `shapes`, `openmoji`, or
a source as a config has it ('{kind: dataset, name: owner/name}'); --text takes a run's folder, for its vocabulary.
Ctrl-C ends the looking: what was found is still reported.

Exit codes: 0 nothing is wrong, 1 problems were found, 2 wrong use, 130 interrupted.
"""

from collections.abc import Sequence

from parti.data_check.check import check
from parti.data_check.first_batch import render_first_batch
from parti.data_check.report import report_text, write_report
from parti.data_check.settings import CheckConfig, load_check_config
from parti.data_check.targets import check_targets
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode


def main(argv: Sequence[str]) -> int:
    """Looks, reports, and returns the exit code."""
    return run_command(argv, Command(CheckConfig, _check, __doc__, load=load_check_config))


def _check(config: CheckConfig) -> int:
    check_targets(config)
    findings = check(config)
    print_out(report_text(findings))  # first of all: no disk is needed for it
    if config.report is not None:
        write_report(findings, config.report)
    if config.image is not None and render_first_batch(findings, config.image):
        print_out(f"{config.image} shows the first batch as the model sees it")
    if findings.interrupted:
        return ExitCode.INTERRUPTED_AT_ONCE
    return ExitCode.ANSWER_IS_NO if findings.problems() else ExitCode.DONE
