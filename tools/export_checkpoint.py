"""Write one of our image tokenizers as a checkpoint that another project reads.

python tools/export_checkpoint.py --model runs/vqgan-mine --format taming --out exported.ckpt

Writes the checkpoint, {"state_dict": ...}, and its YAML beside it.
"""

import sys
from pathlib import Path

from vqgan import load_tokenizer
from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.cli.option_parser import OptionParser
from vqgan.errors import UserError
from vqgan.foreign.formats import EXPORTS, export_checkpoint


@command
def main(argv: list[str]) -> int:
    try:
        options = build_parser().parse_args(argv)
        config = export_checkpoint(options.format, load_tokenizer(options.model), options.out)
    except UserError as error:
        print_error(error)
        return 2
    print_out(f"weights in {options.out}, config in {config}")
    return 0


def build_parser() -> OptionParser:
    parser = OptionParser("export_checkpoint.py", __doc__, add_help=True)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="A model folder or run folder of stage 1")
    parser.add_argument("--format", required=True, choices=EXPORTS, help="The project that shall read it")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="The checkpoint to write")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
