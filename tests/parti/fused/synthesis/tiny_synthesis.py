"""The smallest progressive text-to-image model: 8, 16 and 32 pixels, the rows 1 to 4 and 11 to 14, text 8 wide."""

from pathlib import Path
from typing import Any

import torch

from parti.fused.rows import TrunkConfig
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.noise import NoiseConfig
from parti.fused.synthesis.train_synthesis import TrainSynthesisConfig
from parti.fused.text_side import TextSideConfig, TextSpace
from vqgan.config.schema import validate

TEXT = TextSideConfig(width=8, heads=2, mlp_width=16, dropout=0.0)
TRUNK = TrunkConfig(image_size=32, deepest_row=4, channels=(8, 8, 8, 8), text=TEXT)
MODEL = SynthesisConfig(trunk=TRUNK, finest_channels=8, noise=NoiseConfig(channels=4, hidden_channels=8))
TOKENS = TextSpace(vocab_size=20, length=6, pad_id=0, mask_id=19)


def tiny_generator(model: SynthesisConfig = MODEL, seed: int = 0) -> SynthesisGenerator:
    """A generator whose fusions do something: fresh ones are the identity."""
    torch.manual_seed(seed)
    generator = SynthesisGenerator(model, TOKENS)
    for name, weight in generator.named_parameters():
        if "_last.weight" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return generator.eval()


def tiny_run(run_dir: Path, **changes: Any) -> TrainSynthesisConfig:
    """Everything on: joint matching, distance, R1, dropout. `changes`: {"task.adversarial.loss": "hinge"}."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": {
            "source": {"kind": "shapes", "train_size": 40, "val_size": 8},
            "transform": {"image_size": 32},
            "batch_size": 4,
        },
        "text": {"vocab_size": 280, "length": 24, "training_captions": 20},
        "model": MODEL.model_dump(mode="json"),
        "discriminators": {"scale": {"base_channels": 4, "sentence_width": 8}, "sentence_layers": 1},
        "task": {
            "matching": {"kind": "joint"},
            "distance": {"l1_weight": 1.0, "l2_weight": 0.0, "perceptual": {"weight": 0.0}},
            "adversarial": {"r1_gamma": 0.1, "r1_every": 2},
            "optimizer": {"learning_rate": 1e-2},
            "ema": {"decay": 0.9},
            "precision": "fp32",
            "sampled_prompts": 4,
        },
        "loop": {"steps": 6, "log_every": 2, "evaluate_every": 3, "preview_every": 0, "save_every": 3},
        "preview_images": 2,
    }
    values["model"]["trunk"]["text"]["dropout"] = 0.1
    for name, value in changes.items():
        *sections, key = name.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return validate(TrainSynthesisConfig, values, "test")
