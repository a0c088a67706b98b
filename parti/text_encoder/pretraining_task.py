"""Pretraining of a text encoder: masked tokens, and contrastive matching of captions and images.

Parti, arXiv 2206.10789, section 2.2: BERT's objective on the text of C4 and a contrastive one on images with text.
Here the former reads passages (`parti.text_encoder.corpus`) where there are some, else the captions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.losses.contrastive import contrastive_loss, retrieval_accuracy
from parti.text.masked_tokens import MaskedText, MaskingConfig, Words, mask_tokens, score_masked_tokens
from parti.text.tokenizer import TextTokenizer
from parti.text.warm_start import save_text_encoder
from parti.text_encoder.corpus import Corpus
from parti.text_encoder.network import Read, TextEncoderPretraining
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.metrics.sums import MetricSums
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics
from vqgan.training.monitor.findings import no_better_than_guessing, not_finite
from vqgan.training.objective import Objective
from vqgan.training.parallel.distributed import all_gather_object
from vqgan.training.parallel.gradient_accumulation import rows_of

_LARGEST_SCALE = 100.0
"""Largest factor of the cosine similarities (CLIP, section 2.5: larger ones made training unstable)."""
_VAL_STEP = 0
"""Every evaluation masks its texts with the random numbers of this step."""


class TextPretrainingTaskConfig(LearnerConfig, may_change=("contrastive_weight",)):
    """Settings of the pretraining task."""

    masking: MaskingConfig = MaskingConfig()
    """Masking rates."""
    contrastive_weight: float = Field(1.0, gt=0)
    """Weight of the contrastive loss; that of the masked tokens is 1."""


class _Texts(NamedTuple):
    ids: Int64[Tensor, "B T"]
    masked: MaskedText
    truncated_fraction: float


class _Part(NamedTuple):
    batch: Batch
    texts: _Texts
    per_token: Tensor
    """Factor of the sum over masked tokens."""


class TextPretrainingTask(Objective[_Part]):
    """Trains a text encoder on captions and their images.

    The pairs of all processes are compared with each other, those of different micro-batches are not. `pairs` is the
    number of those that are compared.
    """

    def __init__(
        self,
        config: TextPretrainingTaskConfig,
        network: TextEncoderPretraining,
        tokenizer: TextTokenizer,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        pairs: int,
        corpus: Corpus | None = None,
    ) -> None:
        super().__init__(Learner(config, network, accelerator, steps, constrain=self._limit_scale))
        self.config = config
        self.tokenizer = tokenizer
        self.pairs = pairs
        self._seed = seed
        self._passages = corpus
        self._words = Words(tokenizer)
        self.network = network

    def parts(self, batches: Sequence[Batch], step: int) -> list[_Part]:
        rows = rows_of(self.accelerator, batches)
        texts = [
            self._read(batch, size, step, start, self._passages)
            for batch, (start, size) in zip(batches, rows, strict=True)
        ]
        # Every token of the step has the same weight, in whichever micro-batch it is.
        per_token = self.learner.weight_of_each([text.masked.chosen.sum() for text in texts])
        return [_Part(batch, text, per_token) for batch, text in zip(batches, texts, strict=True)]

    def loss(self, part: _Part, step: int) -> LossAndMetrics:
        del step
        text = part.texts
        read: Read = self.learner(part.batch.images, text.ids, text.masked)
        scores = score_masked_tokens(read.logits, text.masked)
        contrast = contrastive_loss(read.images, read.texts, text.ids, read.scale, self.accelerator)
        masked = scores.nats * part.per_token
        loss = masked + self.config.contrastive_weight * contrast.loss
        return loss, {
            "loss": loss,
            "loss_masked": masked,
            "loss_contrastive": contrast.loss,
            "masked_accuracy": scores.correct * part.per_token,
            "batch_accuracy": contrast.accuracy,
            "logit_scale": read.scale,
            "cut_captions": torch.tensor(text.truncated_fraction, device=loss.device),
        }

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings about non-finite values, and losses no better than chance."""
        more = ", and task.contrastive_weight higher"
        return (
            not_finite(metrics)
            + no_better_than_guessing(metrics, "loss_masked", len(self._words.ids), "tokens")
            + no_better_than_guessing(metrics, "loss_contrastive", self.pairs, "pairs", more)
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluates the averaged weights: masked tokens of validation captions, retrieval among all validation
        pairs."""
        sums = MetricSums(self.accelerator)
        sums.add("masked_tokens", torch.zeros(3, device=self.accelerator.device))
        network = self.ema.module.eval()
        own = []
        for batch in batches:
            # Rows of the batch, which is the same on any number of processes.
            texts = self._read(batch, len(batch), _VAL_STEP, 0)
            read: Read = network(batch.images, texts.ids, texts.masked)
            sums.add("masked_tokens", torch.stack(score_masked_tokens(read.logits, texts.masked)))
            own.append(tuple(part.cpu() for part in (read.images, read.texts, texts.ids)))
        nats, correct, count = sums.totals()["masked_tokens"].tolist()
        images, texts_of_all, ids = map(torch.cat, zip(*all_gather_object(self.accelerator, own), strict=True))
        by_image, by_caption = retrieval_accuracy(images, texts_of_all, ids)
        return {
            "masked_nats": nats / count,
            "masked_accuracy": correct / count,
            "image_to_text_accuracy": by_image,
            "text_to_image_accuracy": by_caption,
        }

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of images with the best-scoring caption of the batch, marked if it is their own."""
        texts = self._read(batch, len(batch), _VAL_STEP, 0)
        read: Read = self.ema.module.eval()(batch.images, texts.ids, texts.masked)
        captions = batch.texts()
        chosen = [captions[int(number)] for number in (read.images @ read.texts.T).argmax(1)]
        marks = [one == other for one, other in zip(chosen, captions, strict=True)]
        return contact_sheet(to_pil(batch.images), chosen, marks=marks)

    def save_model(self, folder: Path) -> None:
        """Saves the averaged text encoder with its vocabulary, for `model.text_encoder.start` of stage 2."""
        save_text_encoder(folder, self.ema.module.text_encoder, self.tokenizer)

    def _read(self, batch: Batch, batch_size: int, step: int, start: int, corpus: Corpus | None = None) -> _Texts:
        """Returns the captions, and as many masked texts; the batch begins at row `start` of `batch_size`."""
        captions = batch.texts()
        ids, cut = self.tokenizer.tokenize(captions)
        texts = ids
        if corpus is not None:
            texts = self.tokenizer.encode(corpus.sample(self._seed, step, start, len(captions)))
        masked = mask_tokens(
            texts, self._words, self.config.masking, batch_size=batch_size, seed=self._seed, step=step, start=start
        )
        device = batch.images.device
        return _Texts(ids.to(device), masked.to(device), sum(cut) / len(cut))

    def _limit_scale(self) -> None:
        self.network.log_scale.clamp_(max=math.log(_LARGEST_SCALE))
