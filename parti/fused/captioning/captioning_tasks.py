"""Training of the captioning model: the losses of `captioning_losses`, two learning rates (SPEC E.4)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.fused.captioning.caption_decoding import MOST_ROUNDS, ROWS
from parti.fused.captioning.captioner import Captioner, Lesson
from parti.fused.captioning.captioning_evaluation import (
    evaluate_captioner,
    judged_captions,
    last_figure,
    told_captions,
)
from parti.fused.captioning.captioning_losses import CaptioningLossesConfig, uneven_attention, weighted, word_nats
from parti.fused.captioning.read_captions import read_captions
from parti.fused.two_rates import TwoRates
from vqgan.config import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.metrics.judge import Judge
from vqgan.training.checkpoint import Stateful
from vqgan.training.ema import EMA, EMAConfig
from vqgan.training.findings import about_skipped_steps
from vqgan.training.micro_batches import accumulate, add_share, weight_of_each
from vqgan.training.optimisation import OptimiserConfig

_LEARNS_BY = 0.1
"""Share of the run after which a model that learns at all does better than a guess."""


class CaptioningTaskConfig(Config, may_change=("trunk_ratio", "precision", "rounds")):
    """How captions are learned."""

    losses: CaptioningLossesConfig = CaptioningLossesConfig()
    """Weights of the losses."""
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=4e-4, clip_norm=5.0)
    """Of what tells words: Show, Attend and Tell, the LSTM heads and the projections."""
    trunk_ratio: float = Field(0.125, gt=0)
    """Learning rate of the trunk (convolutions, fusions, BertLayers, word embeddings), as a share of that of the
    rest; 1 where it starts at random."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the trunk in training; recurrences, logits, losses and weights are fp32 in any case."""
    rounds: int = Field(2, ge=0, le=MOST_ROUNDS)
    """Rounds of refinement in evaluations and previews."""


class CaptioningTask:
    """Trains a captioner on pairs. Without a `judge` captions are compared with the data set's own alone."""

    def __init__(
        self,
        config: CaptioningTaskConfig,
        captioner: Captioner,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        judge: Judge | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.judge = judge
        self._seed = seed
        self.captioner = captioner.to(accelerator.device).train()
        self._parallel_captioner = accelerator.prepare_model(self.captioner)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, self.captioner)
        self.optimiser = TwoRates(config.optimiser, self.captioner, [self.captioner.parts], config.trunk_ratio, steps)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        local = len(batches[0])
        starts = [(part * processes + rank) * local for part in range(len(batches))]
        captions = [
            read_captions(self.captioner.tokens, batch, self._seed, step, local * processes * len(batches), start)
            for batch, start in zip(batches, starts, strict=True)
        ]
        # Every word of the step counts alike, wherever it is read: gradients are averaged over the processes.
        tokens = self.captioner.tokens
        per_word = weight_of_each(
            self.accelerator, [tokens.told(part.ids).sum().to(self.accelerator.device) for part in captions]
        )
        for _, (batch, part) in accumulate(
            self.accelerator, self._parallel_captioner, list(zip(batches, captions, strict=True))
        ):
            with self._autocast():
                lesson: Lesson = self._parallel_captioner(batch.images, part.ids, part.noise)
            asked = tokens.told(part.ids)
            rows = [word_nats(logits, part.ids, asked) * per_word for logits in lesson.logits]
            attention = uneven_attention(lesson.looks, asked) / len(batches)
            weights = self.config.losses
            loss = weighted((*weights.rows, weights.even_attention), (*rows, attention))
            self.accelerator.backward(loss)
            sums = {"loss": loss, "loss_attention": attention}
            sums |= {f"loss_row_{row}": nats for row, nats in zip(ROWS, rows, strict=True)}
            add_share(metrics, sums, 1.0)
            add_share(metrics, {"cut_captions": torch.tensor(part.cut_share, device=loss.device)}, 1 / len(batches))
        metrics |= self.optimiser.step(step)
        if not metrics["skipped"]:
            self.ema.update(self.captioner, step)
        return metrics

    def diagnose(self, figures: Mapping[str, float]) -> list[str]:
        """Lost numbers, a loss that is no better than guessing, and captions that are cut."""
        remedy = "lower task.optimiser.learning_rate, set task.optimiser.clip_norm, or set task.precision to fp32"
        findings = []
        if not math.isfinite(figures.get("loss", 0.0)):
            findings.append(f"the loss is not finite; {remedy}.")
        findings += about_skipped_steps(figures, remedy)
        nats, words = figures.get("loss_row_14"), int(self.captioner.tokens.tellable.sum())
        if nats is not None and nats >= math.log(words) and figures.get("run_share", 0.0) >= _LEARNS_BY:
            findings.append(
                f"nothing is learned: loss_row_14 {nats:.3f} is no better than guessing among {words} tokens, "
                f"{math.log(words):.3f}; try task.optimiser.learning_rate lower, then higher, with a longer "
                "task.optimiser.schedule.warmup, and task.trunk_ratio 1 where the trunk starts at random."
            )
        return findings

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The figures of `evaluate_captioner`, of the averaged weights."""
        judge, rounds = self.judge, self.config.rounds
        return evaluate_captioner(self.ema.module, batches, self.accelerator, rounds, self._seed, judge)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Each picture with its caption, marked where a judge can tell whether it describes the picture."""
        told = told_captions(self.ema.module.eval(), batch.images, self.config.rounds)
        last = last_figure(self.config.rounds)
        judged = judged_captions(self.judge, batch.images, {last: told[last]})
        return contact_sheet(to_pil(batch.images), told[last], marks=judged.get(last))

    def stateful(self) -> dict[str, Stateful]:
        return {"captioner": self.captioner, "ema": self.ema, "optimiser": self.optimiser}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return {}

    def save_model(self, folder: Path) -> None:
        """The averaged captioner as a model folder, with its vocabulary."""
        self.ema.module.save_pretrained(folder)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
