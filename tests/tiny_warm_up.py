"""A warm-up of the text encoder that takes two seconds."""

from pathlib import Path
from typing import Any

import torch

from parti.text_encoder.pretraining_task import TextPretrainingTask
from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig, build_task
from tests.tiny import pairs, tiny_text_tokenizer
from vqgan.config.schema import validate
from vqgan.data.batch import Batch
from vqgan.training.parallel.distributed import build_accelerator

_STACK = {"depth": 1, "width": 32, "heads": 2, "mlp_width": 64}


def run_config(run_dir: Path, **changes: Any) -> TrainTextEncoderConfig:
    """`changes` of sections: data={"batch_size": 8}."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": {
            "source": {"kind": "shapes", "train_size": 512, "val_size": 96},
            "transform": {"image_size": 16},
            "batch_size": 48,
        },
        "text": {"vocab_size": 400, "length": 24, "training_captions": 200},
        "model": {
            "encoder_depth": 1,
            "width": 32,
            "heads": 2,
            "mlp_width": 64,
            "dropout": 0.1,
            "image_encoder": _STACK,
            "patch_size": 4,
            "embedding_width": 16,
        },
        "task": {
            "optimizer": {"kind": "muon", "learning_rate": 1e-2, "schedule": {"warmup": 5}},
            "ema": {"decay": 0.9},
            "precision": "fp32",
        },
        "loop": {"steps": 60, "log_every": 20, "evaluate_every": 20, "preview_every": 0, "save_every": 40},
        "preview_images": 4,
    }
    for name, value in changes.items():
        values[name] = values[name] | value
    return validate(TrainTextEncoderConfig, values, "test")


def tiny_task(corpus: str | None = None, **task: Any) -> TextPretrainingTask:
    """The objectives on what `tiny.pairs` gives: eight pairs, no dropout. `task`: changes of its config."""
    torch.manual_seed(0)
    data = {"transform": {"image_size": 16}, "batch_size": 8}
    config = run_config(Path("nowhere"), data=data, model={"dropout": 0.0}, task=task)
    config = config.model_copy(update={"corpus": corpus})
    return build_task(config, build_accelerator(), tiny_text_tokenizer())


def uneven_pairs() -> Batch:
    """The first four captions have four words each, the others two: different numbers of tokens to hide."""
    batch = pairs(8)
    captions: list[str | None] = [f"a {'red ' * (2 if row < 4 else 0)}{word}" for row, word in enumerate("cdhjcdhj")]
    return Batch(batch.images, captions, batch.names)
