"""Training of a reranker: CLIP's contrastive loss over the pairs of a step."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from parti.losses.contrastive import contrastive_loss, retrieval_accuracy
from parti.reranker.dual_encoder import repeated_layers
from parti.reranker.scorer import Scorer
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics
from vqgan.training.monitor.findings import no_better_than_guessing, not_finite
from vqgan.training.objective import Objective
from vqgan.training.parallel.distributed import all_gather_object

_LARGEST_SCALE = 100.0
"""Largest scale of the logits (CLIP, section 2.5: larger ones made training unstable)."""


class ContrastiveTaskConfig(LearnerConfig):
    """Settings of the contrastive task."""


class ContrastiveTask(Objective[Batch]):
    """Trains a dual encoder (`parti.reranker.dual_encoder`) on images and captions.

    The pairs of all processes are compared with each other, those of different micro-batches are not: accumulation
    saves memory, and gives fewer negatives. `pairs` is the number of those that are compared.
    """

    network_name = "model"

    def __init__(
        self,
        config: ContrastiveTaskConfig,
        model: Any,
        processor: Any,
        accelerator: Accelerator,
        steps: int,
        pairs: int,
    ) -> None:
        learner = Learner(
            config, model.train(), accelerator, steps, layers=repeated_layers, constrain=self._limit_logit_scale
        )
        super().__init__(learner)
        self.pairs = pairs
        self._processor = processor
        self.model = model

    def loss(self, part: Batch, step: int) -> LossAndMetrics:
        del step
        scorer, captions = Scorer(self.model, self._processor), part.texts()
        tokens = scorer.tokens(captions)
        found = self.learner(pixel_values=part.images, **tokens)
        scale = self.model.logit_scale.exp()
        images, texts = _unit(found.image_embeds), _unit(found.text_embeds)
        contrast = contrastive_loss(images, texts, tokens["input_ids"], scale, self.accelerator)
        cut = torch.tensor(sum(scorer.is_cut(captions)) / len(captions), device=scale.device)
        metrics = {"loss": contrast.loss, "batch_accuracy": contrast.accuracy, "logit_scale": scale}
        return contrast.loss, metrics | {"cut_captions": cut}

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings about non-finite values, and a loss no better than chance."""
        return not_finite(metrics) + no_better_than_guessing(metrics, "loss", self.pairs, "pairs")

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluates retrieval with the averaged weights among all validation pairs (data.val_limit)."""
        scorer = self._scorer()
        own = []
        for batch in batches:
            tokens = scorer.tokens(batch.texts())
            found = scorer.model(pixel_values=batch.images, **tokens)
            parts = (_unit(found.image_embeds), _unit(found.text_embeds), tokens["input_ids"])
            own.append(tuple(part.cpu() for part in parts))
        images, texts, text_ids = map(torch.cat, zip(*all_gather_object(self.accelerator, own), strict=True))
        by_image, by_caption = retrieval_accuracy(images, texts, text_ids)
        return {"image_to_text_accuracy": by_image, "text_to_image_accuracy": by_caption}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of images with the best-scoring caption of the batch, marked if it is their own."""
        scorer = self._scorer()
        captions = batch.texts()
        found = scorer.model(pixel_values=batch.images, **scorer.tokens(captions))
        nearest = (_unit(found.image_embeds) @ _unit(found.text_embeds).T).argmax(1)
        chosen = [captions[int(number)] for number in nearest]
        marks = [one == other for one, other in zip(chosen, captions, strict=True)]
        return contact_sheet(to_pil(batch.images), chosen, marks=marks)

    def save_model(self, folder: Path) -> None:
        """Saves averaged weights and processor as a folder that `Scorer` and transformers read."""
        self._scorer().save_pretrained(folder)

    def _scorer(self) -> Scorer:
        return Scorer(self.ema.module.eval(), self._processor)

    def _limit_logit_scale(self) -> None:
        self.model.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
