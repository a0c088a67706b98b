"""Complete an image and its caption with a fused inpainting model: holes by the caption, words by the image.

python tools/inpaint.py --model runs/fused-inpainting-shapes --image image.png --mask mask.png \\
    --caption "a small [MASK] circle above a large blue square" --out out

Prints the caption with the words that were filled in brackets; writes OUT/completed.png, and OUT/sheet.png with what
was given, the mask and the result.
"""

import sys

from parti.fused.inpainting.files import InpaintConfig, inpaint
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
        config = validate(InpaintConfig, given, "the command line")
        print_out(inpaint(config).caption)
        return 0
    except UserError as error:
        print_error(error)
        return 2


def build_parser() -> OptionParser:
    parser = OptionParser("inpaint.py", __doc__)
    placeholders = {"model": "FOLDER", "image": "FILE", "mask": "FILE", "caption": "TEXT", "device": "NAME"}
    for name, field in InpaintConfig.model_fields.items():
        shown = "" if field.is_required() or field.default else "none"
        parser.add_field(InpaintConfig, name, str, placeholders.get(name, "FOLDER"), shown)
    parser.add_help_flag()
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
