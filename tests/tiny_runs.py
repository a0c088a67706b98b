"""Training runs of both stages that take a second: 32x32 images of shapes, networks of one or two blocks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parti.next_token.train_next_token import TrainPartiConfig
from vqgan.autoencoder_task import AutoencoderTask
from vqgan.config.schema import validate
from vqgan.data.batch import Batch
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import AUTOENCODERS
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.train_tokenizer import TrainVQGANConfig

_STACK = {"depth": 1, "width": 16, "heads": 2, "mlp_width": 32}
_MODEL = {
    "image_size": 32,
    "patch_size": 8,
    "encoder": _STACK,
    "decoder": _STACK,
    "quantizer": {"codebook_size": 32, "code_dim": 4},
}
_DATA = {
    "source": {"kind": "shapes", "train_size": 40, "val_size": 8},
    "transform": {"image_size": 32, "crop": "random"},
    "batch_size": 8,
}
_LOOP = {"steps": 8, "log_every": 3, "evaluate_every": 4, "preview_every": 0, "save_every": 3}

PARALLEL_1 = {"task.optimizer": {"kind": "adamw", "learning_rate": 1e-3, "clip_norm": 1.0}, "loop.steps": 6}
PARALLEL_2 = {"model.dropout": 0.0, "task.sampled_prompts": 0, "task.optimizer.learning_rate": 1e-3, "loop.steps": 6}
SHARDED_1 = PARALLEL_1 | {"loop.preview_every": 3, "loop.keep_best": {"metric": "psnr", "mode": "higher"}}
"""Changes for runs whose results are compared between one process and two, where sums round differently: muon
(which works in bf16) and large steps would make much of that."""


GUARDED = {"loop.guard": {"max_skipped_in_a_row": 2}}

TrainStep = Callable[[AutoencoderTask, Sequence[Batch], int], dict[str, Tensor]]


def stage_1(run_dir: Path, **changes: Any) -> TrainVQGANConfig:
    """Everything on: discriminator with R1, EMA, codebook maintenance, random crops. `changes`: {"task.precision":
    "bf16"}."""
    adversarial = {
        "weight": 0.1,
        "r1_every": 2,
        "discriminator": {"kind": "stylegan2", "channels": [4, 6, 8, 8]},
        "optimizer": {"learning_rate": 1e-3, "betas": [0.0, 0.99]},
    }
    task = {
        "l1_weight": 1.0,
        "perceptual": {"weight": 0.0},
        "adversarial": adversarial,
        "codebook_maintenance": {"unquantized": "25%", "restart_every": 2, "memory": 256},
        "optimizer": {"kind": "muon", "learning_rate": 1e-2, "clip_norm": 1.0},
        "ema": {"decay": 0.9},
        "precision": "fp32",
    }
    values = {"run_dir": str(run_dir), "data": _DATA, "model": _MODEL, "task": task, "loop": _LOOP}
    return validate(TrainVQGANConfig, _changed(values, changes), "test")


def stage_2(run_dir: Path, image_tokenizer: Path, **changes: Any) -> TrainPartiConfig:
    """Dropout and caption dropout on."""
    values = {
        "run_dir": str(run_dir),
        "image_tokenizer": str(image_tokenizer),
        "data": _DATA | {"transform": {"image_size": 32}},
        "text": {"vocab_size": 280, "length": 64, "training_captions": 20},
        "model": {
            "encoder_depth": 1,
            "decoder_depth": 1,
            "width": 16,
            "heads": 2,
            "mlp_width": 32,
            "dropout": 0.2,
        },
        "task": {
            "caption_dropout": 0.3,
            "optimizer": {"learning_rate": 1e-2, "clip_norm": 1.0},
            "ema": {"decay": 0.9},
            "precision": "fp32",
            "sampled_prompts": 2,
        },
        "loop": _LOOP,
    }
    return validate(TrainPartiConfig, _changed(values, changes), "test")


def untrained_tokenizer(folder: Path) -> Path:
    """An image tokenizer for stage 2 to read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = validate(ViTVQGANConfig, {"kind": "vit_vqgan", **_MODEL}, "test")
        ImageTokenizer(AUTOENCODERS["vit_vqgan"](config)).save_pretrained(folder)
    return folder


def poisoned(train_step: TrainStep, steps: Sequence[int], rank: int = 0) -> TrainStep:
    """`train_step` with an infinite image on one process at these steps; not again where a step comes again."""
    left = list(steps)

    def poisoning(task: AutoencoderTask, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if step in left:
            left.remove(step)
            if task.accelerator.process_index == rank:
                images = batches[0].images.clone()
                images[0] = math.inf
                batches = [replace(batches[0], images=images), *batches[1:]]
        return train_step(task, batches, step)

    return poisoning


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        *sections, key = name.split(".")
        inner = values
        for section in sections:
            inner[section] = dict(inner.get(section, {}))  # the shared literals above stay as they are
            inner = inner[section]
        inner[key] = value
    return values
