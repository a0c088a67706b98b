"""Code caches that take a second: images of tiny_runs, in shards of 16."""

from pathlib import Path
from typing import Any

from parti.code_cache.settings import EncodeConfig
from vqgan.config.schema import validate

TEXT = {"kind": "bpe", "vocab_size": 280, "length": 64, "training_captions": 20}
SHAPES = {"kind": "shapes", "train_size": 40, "val_size": 8}


def settings(out: Path, tokenizer: Path, source: dict[str, Any] = SHAPES, **changes: Any) -> EncodeConfig:
    """40 images for training: two whole shards and a part. `changes`: of EncodeConfig."""
    values = {
        "tokenizer": str(tokenizer),
        "out": str(out),
        "data": {"source": source, "transform": {"image_size": 32} | changes.pop("transform", {}), "batch_size": 8},
        "text": TEXT,
        "shard_size": 16,
    }
    return validate(EncodeConfig, values | changes, "test")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
