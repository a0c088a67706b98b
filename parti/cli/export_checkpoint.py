"""Write one of our models as a checkpoint that another project reads.

parti export-checkpoint --model runs/vqgan-mine --format taming --out exported.ckpt
parti export-checkpoint --model runs/mae-mine --format transformers --out exported

An image tokenizer as the checkpoint of taming, {"state_dict": ...}, with its YAML beside it. A network of masked image
modeling as a folder: timm.create_model("local-dir:exported", pretrained=True) gives the encoder,
AutoModel.from_pretrained("exported") of transformers too, and the class that its config.json names the whole network.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from parti.mim.export import export_timm, export_transformers
from parti.mim.network import MaskedImageNetwork
from parti.mim.networks import load_network
from vqgan import load_tokenizer
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.schema import Config
from vqgan.foreign.formats import export_checkpoint

_ENCODERS: dict[str, Callable[[MaskedImageNetwork, str], None]] = {
    "timm": export_timm,
    "transformers": export_transformers,
}


class ExportConfig(Config):
    """What to write, and where to."""

    model: str
    """A model folder or run folder of stage 1 or of masked image modeling, or a Hub name (owner/name)."""
    format: Literal["taming", "timm", "transformers"]
    """The project that shall read it: taming for image tokenizers, the others for masked image modeling."""
    out: str
    """The checkpoint, or the folder, to write."""


def main(argv: Sequence[str]) -> int:
    """Writes, and returns the exit code."""
    return run_command(argv, Command(ExportConfig, _export, __doc__, has_file=False))


def _export(config: ExportConfig) -> int:
    if config.format == "taming":
        settings = export_checkpoint(config.format, load_tokenizer(config.model), Path(config.out))
        print_out(f"weights in {config.out}, config in {settings}")
    else:
        _ENCODERS[config.format](load_network(config.model), config.out)
        print_out(f"weights and config for {config.format} in {config.out}")
    return ExitCode.DONE
