"""Convert an image tokenizer, or an encoder of masked image modeling, of another project into a model folder of ours.

parti import-checkpoint --format taming --checkpoint last.ckpt --config project.yaml --out tokenizers/f16
parti import-checkpoint --format mae --checkpoint mae.pth --config configs/mim/mae_base.yaml --out models/mae

No pickle is executed: files are read as data, and one that asks for more than weights need is refused by name.
`vqgan.load_tokenizer("tokenizers/f16")` loads the result, and stage 2 takes it: `--image_tokenizer tokenizers/f16`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from parti.mim.published import PUBLISHED, import_published
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.schema import Config, ConfigError
from vqgan.foreign.formats import import_checkpoint


class ImportConfig(Config):
    """What to convert, and where to."""

    format: Literal["taming", "llamagen", "enhancing", "openai-dvae", "mindalle", "mae", "beit", "simmim"]
    """The project that the file comes from."""
    checkpoint: str
    """Its weights; for openai-dvae the folder of encoder.pkl and decoder.pkl, for mindalle the published tar."""
    config: str | None = None
    """The YAML that was published beside it (taming, enhancing); for mae, beit and simmim one of configs/mim, of the
    file's sizes."""
    out: str
    """The model folder to write."""
    image_size: int | None = None
    """The training resolution, where the file does not say it (taming without --config, llamagen, mindalle): 256 where
    it is not given."""


def main(argv: Sequence[str]) -> int:
    """Converts, and returns the exit code."""
    return run_command(argv, Command(ImportConfig, _import, __doc__, has_file=False))


def _import(config: ImportConfig) -> int:
    settings = None if config.config is None else Path(config.config)
    if config.format in PUBLISHED:
        return _import_network(config, settings)
    checkpoint, out = Path(config.checkpoint), Path(config.out)
    tokenizer = import_checkpoint(config.format, checkpoint, settings, out, config.image_size, print_out)
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    height, width = tokenizer.grid
    print_out(
        f"{config.format}: {parameters:,} parameters, {tokenizer.vocab_size} codes, a grid of {height}x{width} for "
        f"{tokenizer.image_size}x{tokenizer.image_size} pixels\n"
        f"written to {config.out}; read back, it gives the same codes and the same image"
    )
    return ExitCode.DONE


def _import_network(config: ImportConfig, settings: Path | None) -> int:
    if settings is None:
        raise ConfigError(f"--config is missing: for {config.format} give one of configs/mim, of the file's sizes")
    network = import_published(config.format, Path(config.checkpoint), settings, print_out)
    network.save_pretrained(config.out)
    parameters = sum(parameter.numel() for parameter in network.encoder.parameters())
    print_out(f"{config.format}: an encoder of {parameters:,} parameters, written to {config.out}")
    return ExitCode.DONE
