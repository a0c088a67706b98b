"""Recipes whose outcome is asserted: what a tokenizer must be able to learn in seconds."""

from pathlib import Path
from typing import Any

import pytest

from vqgan.config.schema import validate
from vqgan.data.loader import DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.fidelity import psnr
from vqgan.models import AUTOENCODERS
from vqgan.train_tokenizer import TrainVQGANConfig, train
from vqgan.training.run_folder import RunFolder

STACK = {"depth": 1, "width": 64, "heads": 2, "mlp_width": 128}
MODELS: dict[str, dict[str, Any]] = {
    "vit_vqgan": {"encoder": STACK, "decoder": STACK},
    "enhancing_vit_vqgan": {"encoder": STACK, "decoder": STACK},
    "cnn_vqgan": {
        "base_channels": 8,
        "channel_multipliers": [1, 1, 2, 2],
        "residual_blocks": 1,
        "groups": 4,
        "attention_resolutions": [4],
        "latent_channels": 32,
    },
    "dvae": {"hidden": 16, "blocks_per_group": 1, "decoder_width": 16, "output": "rgb"},
}


def overfit(
    folder: Path, num_images: int, steps: int, model: str = "vit_vqgan", learning_rate: float = 2e-2
) -> tuple[ImageTokenizer, list[float]]:
    """Train on `num_images` images of shapes at 32x32; the shipped tokenizer, and its PSNR on each of them."""
    values = {
        "run_dir": str(folder),
        "data": {
            "source": {"kind": "shapes", "train_size": num_images, "val_size": 1},
            "transform": {"image_size": 32},
            "batch_size": num_images,
        },
        "model": {
            "kind": model,
            "image_size": 32,
            "quantizer": {"kind": "nearest", "codebook_size": 32, "code_dim": 8},
            **MODELS[model],
        },
        "task": {
            "perceptual": {"weight": 0.0},
            "adversarial": {"weight": 0.0},
            "codebook_maintenance": {"unquantized": "30%", "restart_every": 10},
            "optimizer": {
                "kind": "muon",
                "learning_rate": learning_rate,
                "weight_decay": 0.0,
                "schedule": {"shape": "cosine", "warmup": 10, "final_ratio": 0.01},
            },
            "ema": {"decay": 0.9},
        },
        "loop": {"steps": steps, "log_every": 50, "evaluate_every": 0, "preview_every": 0, "save_every": 0},
    }
    config = validate(TrainVQGANConfig, values, "recipe")
    assert train(config)
    tokenizer = ImageTokenizer.from_pretrained(folder / "model")
    images = DataPipeline(config.data, config.seed).preview_batch(num_images, "train").images
    return tokenizer, psnr(tokenizer.decode(tokenizer.encode(images)), images).tolist()


@pytest.mark.slow  # minutes; below, four images; of each kind test_combinations.py: ten steps make the loss fall
@pytest.mark.parametrize(
    ("model", "learning_rate", "steps"),
    [("vit_vqgan", 2e-2, 300), ("enhancing_vit_vqgan", 1e-2, 600), ("cnn_vqgan", 5e-3, 400), ("dvae", 2e-2, 500)],
)
def test_a_tokenizer_overfits_one_image(tmp_path: Path, model: str, learning_rate: float, steps: int) -> None:
    assert MODELS.keys() == AUTOENCODERS.keys()
    _, (quality,) = overfit(tmp_path, 1, steps, model, learning_rate)
    assert quality > 35


@pytest.mark.slow  # the networks' ten steps are in test_combinations
def test_a_tokenizer_overfits_four_images_which_only_their_codes_tell_apart(tmp_path: Path) -> None:
    _, qualities = overfit(tmp_path, num_images=4, steps=450)
    assert min(qualities) > 40, "six seeds gave 44 dB at least"
    records = [record for record in RunFolder(tmp_path).read_metrics() if record["split"] == "train"]
    began = 0.0
    for record in records:
        seconds, rate = float(str(record["seconds"])), float(str(record["images_per_second"]))
        assert rate == pytest.approx(50 * 4 / (seconds - began), rel=1e-6), "steps x batch / time"
        began = seconds
