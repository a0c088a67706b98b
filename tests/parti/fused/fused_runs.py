"""Tiny runs of the fused objectives that draw nothing at random by process: without dropout."""

from pathlib import Path
from typing import Any

from parti.fused.inpainting import train_inpainting as inpainting_train
from parti.fused.inpainting.train_inpainting import TrainInpaintingConfig
from parti.fused.synthesis import train_synthesis as synthesis_train
from parti.fused.synthesis.synthesis_task import SynthesisTask
from tests.parti.fused.synthesis.tiny_synthesis import tiny_run
from tests.parti.fused.tiny_trunk import TRUNK
from vqgan.config.schema import validate

DISCRIMINATOR = {"kind": "stylegan2", "channels": [8, 8, 8], "stddev_group": 2}


def inpainting(run_dir: Path) -> bool:
    """Holes, words and a discriminator."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": {
            "source": {"kind": "shapes", "train_size": 40, "val_size": 8},
            "transform": {"image_size": TRUNK.image_size},
            "batch_size": 4,
        },
        "text": {"vocab_size": 400, "length": 16, "training_captions": 20},
        "model": TRUNK.model_dump(mode="json"),
        "task": {
            "perceptual": {"weight": 0.0},
            "adversarial": {"weight": 0.1, "loss": "hinge", "discriminator": DISCRIMINATOR, "r1_gamma": 0.0},
            "optimizer": {"learning_rate": 1e-3},
            "ema": {"decay": 0.9},
            "precision": "fp32",
        },
        "loop": {"steps": 4, "log_every": 2, "evaluate_every": 2, "preview_every": 0, "save_every": 4},
        "preview_images": 2,
    }
    values["model"]["text"]["dropout"] = 0.0
    return inpainting_train.train(validate(TrainInpaintingConfig, values, "test"))


def synthesis(run_dir: Path) -> SynthesisTask:
    """The three players, joint matching, distance and R1; the task as this process has it at the end."""
    tasks: list[SynthesisTask] = []
    build_task = synthesis_train.build_task

    def building(*arguments: Any, **named: Any) -> SynthesisTask:
        tasks.append(build_task(*arguments, **named))
        return tasks[0]

    synthesis_train.build_task = building
    try:
        assert synthesis_train.train(tiny_run(run_dir, **{"model.trunk.text.dropout": 0.0}))
    finally:
        synthesis_train.build_task = build_task
    return tasks[0]
