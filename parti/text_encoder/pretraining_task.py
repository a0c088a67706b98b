"""What the warm-up of a text encoder minimizes: masked tokens, and the contrast of captions and images.

Parti, arXiv 2206.10789, section 2.2: BERT's objective on the text of C4 and a contrastive one on images with text.
Here the former reads passages (`parti.text_encoder.corpus`) where there are some, else the captions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.losses.contrastive import contrastive_loss, retrieval_accuracy
from parti.text.masked_tokens import MaskedText, MaskingConfig, Words, mask_tokens, tell
from parti.text.tokenizer import TextTokenizer
from parti.text.warm_start import save_text_encoder
from parti.text_encoder.corpus import Corpus
from parti.text_encoder.network import Read, TextEncoderPretraining
from vqgan.config.schema import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.metrics.sums import MetricSums
from vqgan.training.monitor.diagnostics_log import about_skipped_steps
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.parallel.distributed import all_gather_object
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share, weight_of_each
from vqgan.training.task import Stateful

_LARGEST_SCALE = 100.0
"""Of the cosines; CLIP, section 2.5: more made training unstable."""
_LEARNS_BY = 0.1
"""Share of the run after which a network that learns at all does better than a guess."""
_VAL_STEP = 0
"""Validation texts have the masks of this step, at every evaluation."""


class TextPretrainingTaskConfig(Config, may_change=("contrastive_weight", "precision")):
    """How a text encoder learns to read."""

    masking: MaskingConfig = MaskingConfig()
    """Which tokens are hidden."""
    contrastive_weight: float = Field(1.0, gt=0)
    """Weight of the contrastive loss; that of the masked tokens is 1."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Its optimizer."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the network in training; logits, comparisons, losses and weights are fp32 in any case."""


class _Texts(NamedTuple):
    ids: Int64[Tensor, "B T"]
    masked: MaskedText
    truncated_fraction: float


class TextPretrainingTask:
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
        self.config = config
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.pairs = pairs
        self._seed = seed
        self._passages = corpus
        self._words = Words(tokenizer)
        self.network = network.to(accelerator.device).train()
        self._parallel_network = accelerator.prepare_model(network)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, network)
        self.optimizer = Optimizer(config.optimizer, network, steps)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        local = len(batches[0])
        starts = [(part * processes + rank) * local for part in range(len(batches))]
        texts = [
            self._read(batch, local * processes * len(batches), step, start, self._passages)
            for batch, start in zip(batches, starts, strict=True)
        ]
        # Every token of the step counts alike, wherever it is read: gradients are averaged over the processes.
        per_token = weight_of_each(self.accelerator, [text.masked.chosen.sum() for text in texts])
        parts = list(zip(batches, texts, strict=True))
        for _, (batch, text) in accumulate(self.accelerator, self._parallel_network, parts):
            with self._autocast():
                read: Read = self._parallel_network(batch.images, text.ids, text.masked)
            told = tell(read.logits, text.masked)
            contrast = contrastive_loss(read.images, read.texts, text.ids, read.scale, self.accelerator)
            masked, contrastive = told.nats * per_token, contrast.loss / len(batches)
            loss = masked + self.config.contrastive_weight * contrastive
            self.accelerator.backward(loss)
            sums = {"loss": loss, "loss_masked": masked, "loss_contrastive": contrastive}
            add_share(metrics, sums | {"masked_accuracy": told.right * per_token}, 1.0)
            means = {"batch_accuracy": contrast.accuracy, "logit_scale": read.scale}
            cut = torch.tensor(text.truncated_fraction, device=loss.device)
            add_share(metrics, means | {"cut_captions": cut}, 1 / len(batches))
        metrics |= self.optimizer.step(step)
        with torch.no_grad():
            self.network.log_scale.clamp_(max=math.log(_LARGEST_SCALE))
        self.ema.update(self.network, step)
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers, and losses that are no better than guessing."""
        remedy = "lower task.optimizer.learning_rate, set task.optimizer.clip_norm, or set task.precision to fp32"
        findings = []
        if not math.isfinite(metrics.get("loss", 0.0)):
            findings.append(f"the loss is not finite; {remedy}.")
        findings += about_skipped_steps(metrics, remedy)
        guesses = {
            "loss_masked": (len(self._words.ids), "tokens", ""),
            "loss_contrastive": (self.pairs, "pairs", ", and task.contrastive_weight higher"),
        }
        for name, (among, things, more) in guesses.items():
            value = metrics.get(name)
            if value is not None and value >= math.log(among) and metrics.get("run_share", 0.0) >= _LEARNS_BY:
                findings.append(
                    f"nothing is learned: {name} {value:.3f} is no better than guessing among {among} {things}, "
                    f"{math.log(among):.3f}; try task.optimizer.learning_rate lower, then higher, with a longer "
                    f"task.optimizer.schedule.warmup{more}."
                )
        return findings

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Of the averaged weights: hidden tokens of validation captions, retrieval among all validation pairs."""
        sums = MetricSums(self.accelerator)
        sums.add("told", torch.zeros(3, device=self.accelerator.device))
        network = self.ema.module.eval()
        own = []
        for batch in batches:
            # Rows of the batch, which is the same on any number of processes.
            texts = self._read(batch, len(batch), _VAL_STEP, 0)
            read: Read = network(batch.images, texts.ids, texts.masked)
            sums.add("told", torch.stack(tell(read.logits, texts.masked)))
            own.append(tuple(part.cpu() for part in (read.images, read.texts, texts.ids)))
        nats, right, count = sums.totals()["told"].tolist()
        images, texts_of_all, ids = map(torch.cat, zip(*all_gather_object(self.accelerator, own), strict=True))
        by_image, by_caption = retrieval_accuracy(images, texts_of_all, ids)
        return {
            "masked_nats": nats / count,
            "masked_accuracy": right / count,
            "image_to_text_accuracy": by_image,
            "text_to_image_accuracy": by_caption,
        }

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Each image with the caption that fits it best, of those of the batch; marked where it is its own."""
        texts = self._read(batch, len(batch), _VAL_STEP, 0)
        read: Read = self.ema.module.eval()(batch.images, texts.ids, texts.masked)
        captions = batch.texts()
        chosen = [captions[int(number)] for number in (read.images @ read.texts.T).argmax(1)]
        marks = [one == other for one, other in zip(chosen, captions, strict=True)]
        return contact_sheet(to_pil(batch.images), chosen, marks=marks)

    def stateful(self) -> dict[str, Stateful]:
        return {"network": self.network, "ema": self.ema, "optimizer": self.optimizer}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return {}

    def save_model(self, folder: Path) -> None:
        """The text encoder alone, averaged, with its vocabulary: what `model.text_encoder.start` of stage 2 reads."""
        save_text_encoder(folder, self.ema.module.text_encoder, self.tokenizer)

    def _read(self, batch: Batch, batch_size: int, step: int, start: int, corpus: Corpus | None = None) -> _Texts:
        """The captions, and as many texts with hidden tokens; the batch begins at row `start` of `batch_size`."""
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
