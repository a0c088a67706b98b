"""Training of the captioning model: the losses of `captioning_losses`, two learning rates (papers.md E.4)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.fused.captioning.captioner import Captioner, TrainOutput
from parti.fused.captioning.decoding import MOST_ROUNDS, ROWS
from parti.fused.captioning.encode_captions import read_captions
from parti.fused.captioning.evaluation import (
    checked_captions,
    evaluate_captioner,
    last_metric,
    predicted_captions,
)
from parti.fused.captioning.losses import CaptioningLossesConfig, attention_imbalance, weighted, word_nats
from vqgan.config.schema import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.metrics.caption_checkers import Judge
from vqgan.training.monitor.diagnostics_log import about_skipped_steps
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.low_rate_group import LowRateGroup
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share, weight_of_each
from vqgan.training.task import Stateful

_LEARNS_BY = 0.1
"""Share of the run after which a model that learns at all does better than a guess."""


class CaptioningTaskConfig(Config, may_change=("trunk_lr_ratio", "precision", "rounds")):
    """How captions are learned."""

    losses: CaptioningLossesConfig = CaptioningLossesConfig()
    """Weights of the losses."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=4e-4, clip_norm=5.0)
    """Of what tells words: Show, Attend and Tell, the LSTM heads and the projections."""
    trunk_lr_ratio: float = Field(0.125, gt=0)
    """Learning rate of the trunk (convolutions, fusions, BertLayers, word embeddings), as a share of that of the
    rest; 1 where it starts at random."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the trunk in training; recurrences, logits, losses and weights are fp32 in any case."""
    rounds: int = Field(2, ge=0, le=MOST_ROUNDS)
    """Rounds of refinement in evaluations and previews."""


class CaptioningTask:
    """Trains a captioner on pairs. Without a `check_image` captions are compared with the data set's own alone."""

    def __init__(
        self,
        config: CaptioningTaskConfig,
        captioner: Captioner,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        check_image: Judge | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.check_image = check_image
        self._seed = seed
        self.captioner = captioner.to(accelerator.device).train()
        self._parallel_captioner = accelerator.prepare_model(self.captioner)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, self.captioner)
        self.optimizer = LowRateGroup(
            config.optimizer, self.captioner, [self.captioner.parts], config.trunk_lr_ratio, steps
        )

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
            self.accelerator, [tokens.predicted(part.ids).sum().to(self.accelerator.device) for part in captions]
        )
        for _, (batch, part) in accumulate(
            self.accelerator, self._parallel_captioner, list(zip(batches, captions, strict=True))
        ):
            with self._autocast():
                lesson: TrainOutput = self._parallel_captioner(batch.images, part.ids, part.noise)
            asked = tokens.predicted(part.ids)
            rows = [word_nats(logits, part.ids, asked) * per_word for logits in lesson.logits]
            attention = attention_imbalance(lesson.attention_maps, asked) / len(batches)
            weights = self.config.losses
            loss = weighted((*weights.rows, weights.attention_balance), (*rows, attention))
            self.accelerator.backward(loss)
            sums = {"loss": loss, "loss_attention": attention}
            sums |= {f"loss_row_{row}": nats for row, nats in zip(ROWS, rows, strict=True)}
            add_share(metrics, sums, 1.0)
            add_share(
                metrics, {"cut_captions": torch.tensor(part.truncated_fraction, device=loss.device)}, 1 / len(batches)
            )
        metrics |= self.optimizer.step(step)
        if not metrics["skipped"]:
            self.ema.update(self.captioner, step)
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers, a loss that is no better than guessing, and captions that are cut."""
        remedy = "lower task.optimizer.learning_rate, set task.optimizer.clip_norm, or set task.precision to fp32"
        findings = []
        if not math.isfinite(metrics.get("loss", 0.0)):
            findings.append(f"the loss is not finite; {remedy}.")
        findings += about_skipped_steps(metrics, remedy)
        nats, words = metrics.get("loss_row_14"), int(self.captioner.tokens.visible_words.sum())
        if nats is not None and nats >= math.log(words) and metrics.get("run_share", 0.0) >= _LEARNS_BY:
            findings.append(
                f"nothing is learned: loss_row_14 {nats:.3f} is no better than guessing among {words} tokens, "
                f"{math.log(words):.3f}; try task.optimizer.learning_rate lower, then higher, with a longer "
                "task.optimizer.schedule.warmup, and task.trunk_lr_ratio 1 where the trunk starts at random."
            )
        return findings

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The metrics of `evaluate_captioner`, of the averaged weights."""
        check_image, rounds = self.check_image, self.config.rounds
        return evaluate_captioner(self.ema.module, batches, self.accelerator, rounds, self._seed, check_image)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Each image with its caption, marked where a judge can tell whether it describes the image."""
        predicted = predicted_captions(self.ema.module.eval(), batch.images, self.config.rounds)
        last = last_metric(self.config.rounds)
        judged = checked_captions(self.check_image, batch.images, {last: predicted[last]})
        return contact_sheet(to_pil(batch.images), predicted[last], marks=judged.get(last))

    def stateful(self) -> dict[str, Stateful]:
        return {"captioner": self.captioner, "ema": self.ema, "optimizer": self.optimizer}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return {}

    def save_model(self, folder: Path) -> None:
        """The averaged captioner as a model folder, with its vocabulary."""
        self.ema.module.save_pretrained(folder)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
