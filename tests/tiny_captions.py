"""The smallest captioners: 32 x 32 pixels in nine rows, text rows of width 16, the captions of `tiny`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parti.fused.captioning.captioner import Captioner, CaptionerConfig, DraftNoise
from parti.fused.captioning.captioning_task import CaptioningTask
from parti.fused.captioning.train_captioning import TrainCaptioningConfig, build_task
from parti.text.tokenizer import TextTokenizer
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from vqgan.config.schema import validate
from vqgan.data.batch import Batch
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.training.parallel.distributed import build_accelerator

MODEL: dict[str, Any] = {
    "image_size": 32,
    "deepest_row": 4,
    "channels": [4, 8, 8, 16],
    "text": {"width": 16, "heads": 2, "mlp_width": 32, "dropout": 0.0},
    "attention_width": 8,
}


def tiny_captioner(tokenizer: TextTokenizer | None = None, seed: int = 0, **changes: Any) -> Captioner:
    """One with opinions: a fresh fusion is the identity, this one's fusions are not. In evaluation mode."""
    torch.manual_seed(seed)
    captioner = Captioner(validate(CaptionerConfig, MODEL | changes, "test"), tokenizer or tiny_text_tokenizer())
    for weight in captioner.parameters():
        nn.init.normal_(weight, std=0.3)
    return captioner.eval()


def random_images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(count: int = 3, seed: int = 0, length: int = 8) -> DraftNoise:
    generated = torch.rand(count, 2 * length + 1, generator=torch.Generator().manual_seed(seed))
    return DraftNoise(generated[:, :length], generated[:, length], generated[:, length + 1 :])


def caption_ids(captioner: Captioner, count: int = 3) -> Tensor:
    return captioner.tokens.encode(CAPTIONS[:count]).ids


def captioned(count: int = 8, seed: int = 0) -> Batch:
    """The first captions, each with an image of its own: 4 x 4 random patches. Every second caption is longer."""
    patches = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    images = patches.repeat_interleave(8, 2).repeat_interleave(8, 3)
    captions: list[str | None] = [text + " hat" * (row % 2) for row, text in enumerate(CAPTIONS[:count])]
    return Batch(images, captions, [f"pair {row}" for row in range(count)])


def run_config(run_dir: Path, **changes: Any) -> TrainCaptioningConfig:
    """A run on shapes that takes a second. `changes` of sections: data={"batch_size": 8}."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": {
            "source": {"kind": "shapes", "train_size": 16, "val_size": 2},
            "transform": {"image_size": 32, "crop": "random"},
            "batch_size": 2,
        },
        "text": {"vocab_size": 400, "length": 12, "training_captions": 40},
        "model": MODEL,
        "task": {
            "optimizer": {"learning_rate": 1e-2, "clip_norm": 5.0, "schedule": {"warmup": 2}},
            "ema": {"decay": 0.9},
            "precision": "fp32",
            "rounds": 1,
        },
        "loop": {"steps": 4, "log_every": 3, "evaluate_every": 0, "preview_every": 0, "save_every": 0},
        "preview_images": 2,
    }
    for name, value in changes.items():
        values[name] = values[name] | value
    return validate(TrainCaptioningConfig, values, "test")


def tiny_task(
    check_image: CaptionChecker | None = None, steps: int = 10, width: int = 16, **task: Any
) -> CaptioningTask:
    """The objective on what `captioned` gives; text rows are `width` wide. `task`: changes of its config."""
    torch.manual_seed(0)
    model = {"text": MODEL["text"] | {"width": width}}
    config = run_config(Path("nowhere"), task=task, model=model, loop={"steps": steps})
    return build_task(config, build_accelerator(), tiny_text_tokenizer(), check_image)
