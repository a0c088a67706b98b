"""Training of the captioning model: the losses of `captioning_losses`, two learning rates (papers.md E.4)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.fused.captioning.captioner import Captioner, TrainOutput
from parti.fused.captioning.decoding import MOST_ROUNDS, ROWS
from parti.fused.captioning.encode_captions import ReadCaptions, read_captions
from parti.fused.captioning.evaluation import (
    checked_captions,
    evaluate_captioner,
    last_metric,
    predicted_captions,
)
from parti.fused.captioning.losses import CaptioningLossesConfig, attention_imbalance, weighted, word_nats
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics, LowRate
from vqgan.training.monitor.findings import no_better_than_guessing, not_finite
from vqgan.training.objective import Objective
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.parallel.gradient_accumulation import rows_of


class CaptioningTaskConfig(LearnerConfig, may_change=("trunk_lr_ratio", "rounds")):
    """Settings of the captioning task."""

    losses: CaptioningLossesConfig = CaptioningLossesConfig()
    """Weights of the losses."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=4e-4, clip_norm=5.0)
    """Optimizer of the word heads: Show, Attend and Tell, the LSTM heads and the projections."""
    trunk_lr_ratio: float = Field(0.125, gt=0)
    """Learning rate of the trunk (convolutions, fusions, BertLayers, word embeddings), as a share of that of the
    rest; 1 where it starts at random."""
    rounds: int = Field(2, ge=0, le=MOST_ROUNDS)
    """Rounds of refinement in evaluations and previews."""


class _Part(NamedTuple):
    batch: Batch
    captions: ReadCaptions
    per_word: Tensor
    """Factor of the sum over words."""


class CaptioningTask(Objective[_Part]):
    """Trains a captioner on pairs. Without `check_image`, captions are only compared with those of the data set."""

    network_name = "captioner"

    def __init__(
        self,
        config: CaptioningTaskConfig,
        captioner: Captioner,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        check_image: CaptionChecker | None = None,
    ) -> None:
        low_rate = LowRate([captioner.parts], config.trunk_lr_ratio)
        super().__init__(Learner(config, captioner.train(), accelerator, steps, low_rate=low_rate))
        self.config = config
        self.check_image = check_image
        self._seed = seed
        self.captioner = captioner

    def parts(self, batches: Sequence[Batch], step: int) -> list[_Part]:
        tokens, device = self.captioner.tokens, self.accelerator.device
        captions = [
            read_captions(tokens, batch, self._seed, step, size, start)
            for batch, (start, size) in zip(batches, rows_of(self.accelerator, batches), strict=True)
        ]
        # Every word of the step has the same weight, in whichever micro-batch it is.
        per_word = self.learner.weight_of_each([tokens.predicted(part.ids).sum().to(device) for part in captions])
        return [_Part(batch, part, per_word) for batch, part in zip(batches, captions, strict=True)]

    def loss(self, part: _Part, step: int) -> LossAndMetrics:
        del step
        ids, weights = part.captions.ids, self.config.losses
        output: TrainOutput = self.learner(part.batch.images, ids, part.captions.noise)
        asked = self.captioner.tokens.predicted(ids)
        rows = [word_nats(logits, ids, asked) * part.per_word for logits in output.logits]
        attention = attention_imbalance(output.attention_maps, asked)
        loss = weighted((*weights.rows, weights.attention_balance), (*rows, attention))
        cut = torch.tensor(part.captions.truncated_fraction, device=loss.device)
        metrics = {"loss": loss, "loss_attention": attention, "cut_captions": cut}
        return loss, metrics | {f"loss_row_{row}": nats for row, nats in zip(ROWS, rows, strict=True)}

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings about non-finite values, and a loss no better than chance."""
        words = int(self.captioner.tokens.visible_words.sum())
        more = ", and task.trunk_lr_ratio 1 where the trunk starts at random"
        return not_finite(metrics) + no_better_than_guessing(metrics, "loss_row_14", words, "tokens", more)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the metrics of `evaluate_captioner` with the averaged weights."""
        check_image, rounds = self.check_image, self.config.rounds
        return evaluate_captioner(self.ema.module, batches, self.accelerator, rounds, self._seed, check_image)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of images with their captions, marked as correct or not if there is a checker."""
        predicted = predicted_captions(self.ema.module.eval(), batch.images, self.config.rounds)
        last = last_metric(self.config.rounds)
        judged = checked_captions(self.check_image, batch.images, {last: predicted[last]})
        return contact_sheet(to_pil(batch.images), predicted[last], marks=judged.get(last))

    def save_model(self, folder: Path) -> None:
        """Saves the averaged captioner with its vocabulary as a model folder."""
        self.ema.module.save_pretrained(folder)
