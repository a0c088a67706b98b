"""Check a data set before training: read it as training would, and say what is wrong with it.

python tools/check_data.py --data FOLDER
python tools/check_data.py --data pairs.parquet --data.transform.image_size 128 --report check.json
python tools/check_data.py --config configs/parti/shapes.yaml [--section.field value ...]

The last takes the options of a training command as they are: change the tool's name, and it checks what that run reads.

Counts, sizes and proportions, broken items by cause, images that are there twice or in both splits, captions against
the token limit, their alphabet; out/check_data.png (--image) shows the first batch of a run as its model sees it.
--data takes a folder of images, a tar, Parquet, Arrow, JSON or CSV file, a folder of these, `shapes`, `openmoji`, or
a source as a config has it ('{kind: dataset, name: owner/name}'); --text takes a run's folder, for its vocabulary.
Ctrl-C ends the looking: what was found is still reported.

Exit codes: 0 nothing is wrong, 1 problems were found, 2 wrong use, 130 interrupted.
"""

import sys

from parti.data_check.check import check
from parti.data_check.first_batch import render_first_batch
from parti.data_check.report import report_text, write_report
from parti.data_check.settings import CheckConfig, load_settings
from parti.data_check.targets import check_targets
from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.config.schema import dump_config, format_help
from vqgan.errors import UserError

OPTIONS = """\
  --config FILE    config of a training run: checks what that run would read
  --data DATA      what to check, where no config says it
  --text FOLDER    run or model folder whose vocabulary the captions are held against
  --print-config   print the resolved settings and stop
  --help           this text"""


@command
def main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print_out(f"{(__doc__ or '').strip()}\n\n{OPTIONS}\n\n{format_help(CheckConfig)}")
        return 0
    try:
        config, print_config = load_settings(argv)
        if print_config:
            print_out(dump_config(config).rstrip())
            return 0
        check_targets(config)
        findings = check(config)
        print_out(report_text(findings))  # first of all: no disk is needed for it
        if config.report is not None:
            write_report(findings, config.report)
        if config.image is not None and render_first_batch(findings, config.image):
            print_out(f"{config.image} shows the first batch as the model sees it")
    except UserError as error:
        print_error(error)
        return 2
    if findings.interrupted:
        return 130
    return 1 if findings.problems() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
