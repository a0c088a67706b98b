"""Write one of our image tokenizers as a checkpoint that another project reads.

parti export-checkpoint --model runs/vqgan-mine --format taming --out exported.ckpt

Writes the checkpoint, {"state_dict": ...}, and its YAML beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vqgan import load_tokenizer
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.schema import Config
from vqgan.foreign.formats import export_checkpoint


class ExportConfig(Config):
    """What to write, and where to."""

    model: str
    """A model folder or run folder of stage 1, or a Hub name (owner/name)."""
    format: Literal["taming"]
    """The project that shall read it."""
    out: str
    """The checkpoint to write."""


def main(argv: Sequence[str]) -> int:
    """Writes, and returns the exit code."""
    return run_command(argv, Command(ExportConfig, _export, __doc__, has_file=False))


def _export(config: ExportConfig) -> int:
    settings = export_checkpoint(config.format, load_tokenizer(config.model), Path(config.out))
    print_out(f"weights in {config.out}, config in {settings}")
    return ExitCode.DONE
