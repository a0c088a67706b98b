"""What the training of a reranker minimizes: CLIP's contrastive loss over the pairs of a step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from parti.losses.contrastive import contrastive_loss, retrieval_accuracy
from parti.reranker.scorer import Scorer
from vqgan.config.schema import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.training.monitor.diagnostics_log import about_skipped_steps
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.parallel.distributed import all_gather_object
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share
from vqgan.training.task import Stateful

_LARGEST_SCALE = 100.0
"""Of the logits; CLIP, section 2.5: more made training unstable."""
_LEARNS_BY = 0.1
"""Share of the run after which a model that learns at all tells pairs apart better than by guessing."""


class ContrastiveTaskConfig(Config, may_change=("precision",)):
    """How a dual encoder learns."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """Its optimizer."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the network in training; embeddings are compared in fp32, and weights are fp32, in any case."""


class ContrastiveTask:
    """Trains a dual encoder (`parti.reranker.dual_encoder`) on images and captions.

    The pairs of all processes are compared with each other, those of different micro-batches are not: accumulation
    saves memory, and gives fewer negatives. `pairs` is the number of those that are compared.
    """

    def __init__(
        self,
        config: ContrastiveTaskConfig,
        model: Any,
        processor: Any,
        accelerator: Accelerator,
        steps: int,
        pairs: int,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.pairs = pairs
        self._processor = processor
        self.model = model.to(accelerator.device).train()
        self._parallel_model = accelerator.prepare_model(model)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, model)
        self.optimizer = Optimizer(config.optimizer, model, steps)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        reader = Scorer(self.model, self._processor)
        for _, batch in accumulate(self.accelerator, self._parallel_model, batches):
            captions = batch.texts()
            tokens = reader.tokens(captions)
            with self._autocast():
                found = self._parallel_model(pixel_values=batch.images, **tokens)
            images, texts = _unit(found.image_embeds), _unit(found.text_embeds)
            scale = self.model.logit_scale.exp()
            contrast = contrastive_loss(images, texts, tokens["input_ids"], scale, self.accelerator)
            self.accelerator.backward(contrast.loss / len(batches))
            cut = sum(reader.is_cut(captions)) / len(captions)
            step_metrics = {"loss": contrast.loss, "batch_accuracy": contrast.accuracy, "logit_scale": scale}
            add_share(
                metrics, step_metrics | {"cut_captions": torch.tensor(cut, device=scale.device)}, 1 / len(batches)
            )
        metrics |= self.optimizer.step(step)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))
        self.ema.update(self.model, step)
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers, and a loss that is no better than guessing."""
        remedy = "lower task.optimizer.learning_rate, set task.optimizer.clip_norm, or set task.precision to fp32"
        findings = []
        loss, guess = metrics.get("loss"), math.log(self.pairs)
        if loss is not None and not math.isfinite(loss):
            findings.append(f"the loss is not finite; {remedy}.")
        findings += about_skipped_steps(metrics, remedy)
        if loss is not None and loss >= guess and metrics.get("run_share", 0.0) >= _LEARNS_BY:
            findings.append(
                f"nothing is learned: the loss {loss:.3f} is no better than guessing among {self.pairs} pairs, "
                f"{guess:.3f}; try task.optimizer.learning_rate lower, then higher, with a longer "
                "task.optimizer.schedule.warmup."
            )
        return findings

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Retrieval by the averaged weights among all validation pairs (data.val_limit)."""
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
        """Each image with the caption that fits it best, of those of the batch; marked where it is its own."""
        scorer = self._scorer()
        captions = batch.texts()
        found = scorer.model(pixel_values=batch.images, **scorer.tokens(captions))
        nearest = (_unit(found.image_embeds) @ _unit(found.text_embeds).T).argmax(1)
        chosen = [captions[int(number)] for number in nearest]
        marks = [one == other for one, other in zip(chosen, captions, strict=True)]
        return contact_sheet(to_pil(batch.images), chosen, marks=marks)

    def stateful(self) -> dict[str, Stateful]:
        return {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return {}

    def save_model(self, folder: Path) -> None:
        """Averaged weights and processor: a folder that `Scorer`, and transformers itself, reads."""
        self._scorer().save_pretrained(folder)

    def _scorer(self) -> Scorer:
        return Scorer(self.ema.module.eval(), self._processor)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
