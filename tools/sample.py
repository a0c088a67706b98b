"""Draw images of prompts with a trained text-to-image model.

python tools/sample.py --model runs/parti-shapes --prompt "a small red circle above a large blue square" --out out

Writes OUT/0000-00.png (number of the prompt, number of the sample), OUT/grid.png with captions, and OUT/samples.json
(file, prompt, seed and settings of each). An image depends on model, prompt, seed and settings alone, and on the
upsampler where one is given. With --rerank K it is the best of K by --reranker, and the seed is the one that won.
With --image FILE and --keep-top SHARE or --mask FILE images are completed; OUT/given.png shows what is given.
With --image-tokenizer the codes are decoded by another tokenizer that has the same: the larger decoder of the second
phase.
A model that draws at several scales at once (fused_synthesis) draws its largest, with --all-scales all side by side.
"""

import difflib
import sys
from functools import partial
from typing import Any

from parti.sample_files import SampleConfig, resolve, write_samples
from parti.sampling.generate import SamplingConfig
from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.cli.option_parser import OptionParser
from vqgan.config.schema import ConfigError, dump_config
from vqgan.errors import UserError

RECOMMENDED = "as the model recommends"


@command
def main(argv: list[str]) -> int:
    try:
        options = parse(argv)
        if options.pop("help"):
            print_out(build_parser().format_help().rstrip())
            return 0
        print_config = options.pop("print_config")
        config, model = resolve(**options)
        if print_config:
            print_out(dump_config(config).rstrip())
            return 0
        records = write_samples(config, model, progress=True)
        print_out(f"{len(records)} images in {config.out}, all on one sheet in {config.out}/grid.png")
        return 0
    except UserError as error:
        print_error(error)
        return 2


def build_parser() -> OptionParser:
    parser = OptionParser("sample.py", __doc__)
    add, add_sampling = partial(parser.add_field, SampleConfig), partial(parser.add_field, SamplingConfig)
    add("model", str, "FOLDER")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="Text to draw; as often as wanted"
    )
    parser.add_argument("--prompts-file", metavar="FILE", help="More prompts: one a line, blank lines are skipped")
    add("n", int, "COUNT")
    add("seed", int, "NUMBER")
    add_sampling("guidance_scale", float, "NUMBER", RECOMMENDED)
    add_sampling("guidance_schedule", str, "constant|linear|cosine", RECOMMENDED)
    add_sampling("temperature", float, "NUMBER", RECOMMENDED)
    add_sampling("top_k", int, "K", RECOMMENDED)
    add_sampling("top_p", float, "NUMBER", RECOMMENDED)
    add_sampling("precision", str, "fp32|bf16|int8", RECOMMENDED)
    add("rerank", int, "COUNT")
    add("reranker", str, "FOLDER", default="none")
    add("image", str, "FILE", default="none")
    add("keep_top", float, "SHARE", default="none")
    add("mask", str, "FILE", default="none")
    add("image_tokenizer", str, "FOLDER", default="the model's own")
    add("upsample", str, "FOLDER", default="images stay as drawn")
    add("batch_size", int, "COUNT")
    graph = SamplingConfig.model_fields["cuda_graph"].description
    parser.add_argument("--cuda-graph", action="store_const", const=True, help=f"{graph} [{RECOMMENDED}]")
    for flag in ("all_scales", "watch"):
        about = SampleConfig.model_fields[flag].description
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=f"{about} [off]")
    add("device", str, "NAME", default="cuda if there is one, else cpu")
    add("out", str, "FOLDER")
    parser.add_argument("--print-config", action="store_true", help="Print the resolved settings as YAML and stop")
    parser.add_help_flag()
    return parser


def parse(argv: list[str]) -> dict[str, Any]:
    """Returns the options as arguments of `resolve`, with `help` and `print_config`. Raises ConfigError for a wrong
    word."""
    parser = build_parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise ConfigError(f"unexpected word {word!r}; a prompt stands in quotes after --prompt")
        names = [name for action in parser._actions for name in action.option_strings]
        nearest = difflib.get_close_matches(word, names, 1, 0.6)
        hint = f"did you mean {nearest[0]}?" if nearest else f"valid: {', '.join(names)}"
        raise ConfigError(f"unknown option {word}; {hint}")
    options = vars(namespace)
    options["prompts"] = options.pop("prompt")
    options["sampling"] = {name: options.pop(name) for name in SamplingConfig.model_fields if name in options}
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
