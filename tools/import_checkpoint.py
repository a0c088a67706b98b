"""Convert an image tokenizer of another project into a model folder of ours.

python tools/import_checkpoint.py --format taming --checkpoint last.ckpt --config project.yaml --out tokenizers/f16

No pickle is executed: files are read as data, and one that asks for more than weights need is refused by name.
`vqgan.load_tokenizer("tokenizers/f16")` loads the result, and stage 2 takes it: `--image_tokenizer tokenizers/f16`.
"""

import sys
from pathlib import Path

from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.cli.option_parser import OptionParser
from vqgan.errors import UserError
from vqgan.foreign.formats import IMPORTS, import_checkpoint


@command
def main(argv: list[str]) -> int:
    try:
        options = build_parser().parse_args(argv)
        tokenizer = import_checkpoint(
            options.format, options.checkpoint, options.config, options.out, options.image_size, print_out
        )
    except UserError as error:
        print_error(error)
        return 2
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    height, width = tokenizer.grid
    print_out(
        f"{options.format}: {parameters:,} parameters, {tokenizer.vocab_size} codes, a grid of {height}x{width} for "
        f"{tokenizer.image_size}x{tokenizer.image_size} pixels\n"
        f"written to {options.out}; read back, it gives the same codes and the same image"
    )
    return 0


def build_parser() -> OptionParser:
    parser = OptionParser("import_checkpoint.py", __doc__, add_help=True)
    parser.add_argument("--format", required=True, choices=IMPORTS, help="The project that the file comes from")
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="Its weights; for openai-dvae the folder of encoder.pkl and decoder.pkl, for mindalle the published tar",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="The YAML that was published beside it (taming, enhancing)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="The model folder to write")
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="The training resolution, where the file does not say it (taming without --config, llamagen, mindalle) "
        "[256]",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
