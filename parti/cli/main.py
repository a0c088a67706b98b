"""The command `parti`: finds the subcommand. Nothing heavy is loaded for its help, or for a misspelt word."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import parti

COMMANDS = {
    "train": "train what a config says: an image tokenizer, a text-to-image model, a reranker, ...",
    "sample": "draw images of prompts",
    "evaluate": "measure a trained model, every metric with its protocol",
    "report": "show runs on a page: curves, samples, findings, settings, what to type next",
    "plan": "memory, time and cost of a run, before it is started",
    "check-data": "look through a data set as training would read it",
    "encode-dataset": "encode a data set once, so that stage 2 trains without the image tokenizer",
    "caption": "tell what images show, with a fused captioner",
    "inpaint": "complete an image and its caption, with a fused inpainting model",
    "import-checkpoint": "convert an image tokenizer, or an encoder of masked image modeling, of another project",
    "export-checkpoint": "write an image tokenizer, or an encoder of masked image modeling, for another project",
    "demo": "train both stages on embedded images, and show the result on a page",
}
"""Subcommand -> what it does; `parti.cli.NAME` has its `main`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand with the words behind it; returns its exit code (docs/commands.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h", "help"):
        rows = [f"  {name:<18} {about}" for name, about in COMMANDS.items()]
        text = [str(parti.__doc__), "", "parti COMMAND [--option value ...]", "", *rows, "", "parti COMMAND --help"]
        sys.stdout.write("\n".join(text) + " lists the options of one.\n")
        return 0 if words else 2
    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        sys.stderr.write(f"error: {words[0]!a} is no command of parti; {hint}one of: {', '.join(COMMANDS)}\n")
        return 2
    command = importlib.import_module(f"parti.cli.{name.replace('-', '_')}")
    return int(command.main(words[1:]))
