"""An evaluation of every objective gives the metric by which its shipped configs keep the best model."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from parti.objectives import OBJECTIVES
from tests.tiny import pairs
from tests.vqgan.training.parallel.equal_steps import OBJECTIVES as TASKS
from tests.vqgan.training.parallel.equal_steps import larger
from vqgan.config.schema import read_yaml, validate
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.training.checkpoints.best_tracker import BestTracker, KeepBestConfig

CONFIGS = Path(__file__).parents[2] / "configs"
PATHS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "accelerate")
TINY = {
    "image_tokenizer": ("nearest",),
    "next_token": ("encoder_decoder", "decoder_only"),
    "fused_inpainting": ("inpainting",),
    "fused_captioning": ("captioning",),
    "fused_synthesis": ("synthesis",),
    "text_encoder": ("text_warm_up",),
    **{name: (name,) for name in ("mae", "simmim", "beit", "mpp", "reranker", "upsampler")},
}
"""Objective -> tiny tasks of it."""


@cache
def metrics(task_name: str, shapes: bool) -> dict[str, float]:
    """One evaluation of four pairs; with `shapes` also what the checker of these captions gives."""
    build, side = TASKS[task_name]
    task = build()
    if shapes and hasattr(task, "_check_image"):
        task._check_image = caption_checker(ShapesConfig())
    captions = [Shapes(ShapesConfig(), "val", side)[number].caption for number in range(4)]
    return task.evaluate([replace(larger(pairs(4), side), captions=captions)])


def test_each_objective_has_a_tiny_task() -> None:
    assert set(TINY) == set(OBJECTIVES)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_metric_to_keep_the_best_by_is_one_of_the_evaluation(path: Path) -> None:
    values = read_yaml(path)
    best = BestTracker(validate(KeepBestConfig, values["loop"]["keep_best"], str(path)))
    for name in TINY[values["objective"]]:
        best.check_metric(metrics(name, values["data"]["source"]["kind"] == "shapes"))
