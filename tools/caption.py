"""Tell what images show, with a captioner.

python tools/caption.py --model runs/fused-captioning-shapes image.png other.png --heatmaps looks

Prints each file with its caption. A draft is refined up to --refine times; --exit 7 or 11 tells earlier and faster.
With --heatmaps DIR, DIR/NAME.png shows where the model looked for each word.
"""

import sys
from functools import partial

from parti.fused.captioning.files import CaptionConfig, caption_files
from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.cli.option_parser import OptionParser
from vqgan.config.schema import validate
from vqgan.errors import UserError


@command
def main(argv: list[str]) -> int:
    try:
        options = vars(build_parser().parse_args(argv))
        if options.pop("help"):
            print_out(build_parser().format_help().rstrip())
            return 0
        given = {name: value for name, value in options.items() if value is not None}
        for caption in caption_files(validate(CaptionConfig, given, "the command line")):
            print_out(f"{caption.file}: {caption.text}")
        return 0
    except UserError as error:
        print_error(error)
        return 2


def build_parser() -> OptionParser:
    parser = OptionParser("caption.py", __doc__)
    add = partial(parser.add_field, CaptionConfig)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=CaptionConfig.model_fields["images"].description)
    add("model", str, "FOLDER")
    add("refine", int, "ROUNDS")
    add("exit", int, "7|11|14")
    add("temperature", float, "NUMBER")
    add("seed", int, "NUMBER")
    add("heatmaps", str, "FOLDER", "none")
    add("device", str, "NAME", "cuda if there is one, else cpu")
    parser.add_help_flag()
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
