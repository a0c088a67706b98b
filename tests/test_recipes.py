"""Recipes whose outcome is asserted: what a tokenizer must be able to learn in seconds."""

from pathlib import Path

import pytest

from vqgan.config import validate
from vqgan.data.loader import DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.fidelity import psnr
from vqgan.train import TrainVQGANConfig, train
from vqgan.training.run_folder import RunFolder


def overfit(folder: Path, pictures: int, steps: int) -> tuple[ImageTokenizer, list[float]]:
    """Train on `pictures` pictures of shapes at 32x32; the shipped tokenizer, and its PSNR on each of them."""
    stack = {"depth": 1, "width": 64, "heads": 2, "mlp_width": 128}
    values = {
        "run_dir": str(folder),
        "data": {
            "source": {"kind": "shapes", "train_size": pictures, "heldout_size": 1},
            "transform": {"image_size": 32},
            "batch_size": pictures,
        },
        "model": {
            "image_size": 32,
            "encoder": stack,
            "decoder": stack,
            "quantizer": {"codebook_size": 32, "code_dim": 8},
        },
        "task": {
            "perceptual": {"weight": 0.0},
            "adversarial": {"weight": 0.0},
            "codebook_care": {"continuous_share": 0.3, "revive_every": 10},
            "optimiser": {
                "kind": "muon",
                "learning_rate": 2e-2,
                "weight_decay": 0.0,
                "schedule": {"shape": "cosine", "warmup_steps": 10, "final_ratio": 0.01},
            },
            "ema": {"decay": 0.9},
        },
        "loop": {"steps": steps, "log_every": 50, "evaluate_every": 0, "preview_every": 0, "save_every": 0},
    }
    config = validate(TrainVQGANConfig, values, "recipe")
    assert train(config)
    tokenizer = ImageTokenizer.from_pretrained(folder / "model")
    images = DataPipeline(config.data, config.seed).preview_batch(pictures, "train").images
    return tokenizer, psnr(tokenizer.decode(tokenizer.encode(images)), images).tolist()


def test_a_tokenizer_overfits_one_picture(tmp_path: Path) -> None:
    _, (quality,) = overfit(tmp_path, pictures=1, steps=300)
    assert quality > 35


def test_a_tokenizer_overfits_four_pictures_which_only_their_codes_tell_apart(tmp_path: Path) -> None:
    _, qualities = overfit(tmp_path, pictures=4, steps=350)
    assert min(qualities) > 35
    records = [record for record in RunFolder(tmp_path).read_metrics() if record["split"] == "train"]
    began = 0.0
    for record in records:
        seconds, rate = float(str(record["seconds"])), float(str(record["images_per_second"]))
        assert rate == pytest.approx(50 * 4 / (seconds - began), rel=1e-6), "steps x batch / time"
        began = seconds
