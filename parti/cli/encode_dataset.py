"""Encode a data set once, so that stage 2 trains on its codes without the image tokenizer (data.codes).

accelerate launch tools/encode_dataset.py --tokenizer runs/vqgan-shapes --out codes/shapes
    --data.source.kind folder --data.source.path images [--views 4] [--text.kind saved --text.folder runs/parti]

Writes OUT/cache.json, which says what was encoded and what was skipped, and shards (Arrow files). Killed at any
moment, the same command goes on.
"""

from collections.abc import Sequence

from parti.code_cache.encode import encode
from parti.code_cache.settings import EncodeConfig
from vqgan.cli.command_line import run_training


def main(argv: Sequence[str]) -> int:
    """Encodes, and returns the exit code."""
    return run_training(argv, EncodeConfig, encode, __doc__)
