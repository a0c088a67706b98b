"""Synthesis: which captions are wrong ones, and what a lazy penalty weighs."""

from pathlib import Path

import pytest
import torch

from parti.fused.synthesis.synthesis_task import SynthesisTask
from parti.fused.synthesis.train_synthesis import build_task
from tests.parti.fused.synthesis.tiny_synthesis import tiny_run
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from vqgan.data.batch import Batch
from vqgan.training.parallel.distributed import build_accelerator


def task_of(**changes: object) -> SynthesisTask:
    torch.manual_seed(0)
    run = tiny_run(Path("nowhere"), **{"model.trunk.text.dropout": 0.0, "task.matching": None} | changes)
    return build_task(run, build_accelerator(), tiny_text_tokenizer())


def batch(captions: list[str | None]) -> Batch:
    images = torch.rand(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, captions, [str(row) for row in range(len(captions))])


def test_an_equal_caption_is_no_wrong_one() -> None:
    task = task_of()
    mixed = task.parts([batch([CAPTIONS[0], CAPTIONS[0], CAPTIONS[1], CAPTIONS[1]])], 0)[0]
    assert mixed.wrong.tolist() == [True, False, True, False]
    alike = [batch([CAPTIONS[0]] * 4)]
    assert task.parts(alike, 0)[0].wrong.tolist() == [False] * 4
    metrics = task.train_step(alike, 0)
    assert metrics["caption_accuracy"].item() == 0, "of no wrong caption none is told"


def test_the_mean_over_wrong_captions_leaves_equal_ones_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same pair beside others adds nothing to what wrong captions cost but through the pair itself."""
    task = task_of()
    part = task.parts([batch([CAPTIONS[0], CAPTIONS[0], CAPTIONS[1], CAPTIONS[2]])], 0)[0]
    real = task.discriminators(part.real, part.ids, wrong=True)
    logits = real.scales[-1].wrong
    assert logits is not None
    losses = []
    for shift in (0.0, 5.0):
        changed = logits + torch.tensor([0.0, shift, 0.0, 0.0])
        scales = [*real.scales[:-1], real.scales[-1]._replace(wrong=changed)]
        seen = real._replace(scales=scales)
        monkeypatch.setattr(task, "_opponent", lambda *_, seen=seen, **__: seen)
        loss, _ = task._discriminator_loss(part, real, 1 / part.wrong.sum().clamp(min=1), 1)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("every", [1, 4])
def test_a_lazy_penalty_weighs_as_many_steps_as_it_stands_for(every: int) -> None:
    gamma = 0.6
    task = task_of(**{"task.adversarial.r1_gamma": gamma, "task.adversarial.r1_every": every})
    metrics = task.train_step([batch([*CAPTIONS[:4]])], 0)
    expected = gamma / 2 * every * metrics["r1_penalty"].item()
    assert expected > 0
    assert metrics["loss_discriminator_r1"].item() == pytest.approx(expected, rel=1e-5)
