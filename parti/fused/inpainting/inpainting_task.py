"""What the pretraining task minimizes: holes filled and hidden words told, by one network in one pass.

6 times the distance in the holes, once that outside, 0.1 times the perceptual distance of the completed image, the
cross-entropy of the words that are asked for and, where it has a weight, a discriminator's opinion of the completed
image, once it joins.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.fused.inpainting.corruption import CorruptedPair, CorruptionConfig, mask_images, mask_words
from parti.fused.inpainting.evaluation import VAL_STEP, corrupt_batch, evaluate_inpainter
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.losses import inpainting_distances
from parti.fused.inpainting.network import InpaintingNetwork, composite
from parti.text.masked_tokens import tell
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.discriminator_trainer import AdversarialConfig, DiscriminatorTrainer
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig, PerceptualTermConfig
from vqgan.training.monitor.diagnostics_log import about_skipped_steps
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.low_rate_group import LowRateGroup
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share, weight_of_each
from vqgan.training.task import Stateful

_MARKS = ("[", "]")
"""Around words that were told, in previews."""


class InpaintingTaskConfig(
    Config, may_change=("hole_weight", "visible_weight", "text_weight", "bert_lr_ratio", "precision")
):
    """What is taken away, the weights of the losses, and how the network learns."""

    corruption: CorruptionConfig = CorruptionConfig()
    """Holes and hidden words."""
    hole_weight: float = Field(6.0, gt=0)
    """Weight of the absolute difference in the holes."""
    visible_weight: float = Field(1.0, ge=0)
    """Weight of the absolute difference outside of them."""
    text_weight: float = Field(1.0, gt=0)
    """Weight of the cross-entropy of hidden words."""
    perceptual: PerceptualTermConfig = PerceptualTermConfig()
    """The perceptual distance of the completed image."""
    adversarial: AdversarialConfig = AdversarialConfig(weight=0.0, loss="hinge", r1_gamma=0.0)
    """A discriminator of completed images; weight 0: none."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The network's optimizer."""
    bert_lr_ratio: float = Field(0.2, gt=0)
    """Learning rate of the embeddings and BertLayers, as a share of that of all else."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks in training; losses, logits and weights are fp32 in any case."""


class InpaintingTask:
    """Trains an inpainting network. `shapes`: whether images and captions are of that data set, for its metrics."""

    def __init__(
        self,
        config: InpaintingTaskConfig,
        network: InpaintingNetwork,
        tokenizer: TextTokenizer,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        shapes: bool = False,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self._seed = seed
        # Channels last: convolutions take less time on a CPU.
        network = network.to(accelerator.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: InpaintingNetwork = network.train()
        self._parallel_network = accelerator.prepare_model(network)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, network)
        self.inpainter = Inpainter(self.ema.module, tokenizer)
        parts = network.trunk.parts
        self.optimizer = LowRateGroup(
            config.optimizer, network, [parts.embeddings, parts.text], config.bert_lr_ratio, steps
        )
        distances = ImageLossesConfig(l2_weight=0.0, perceptual=config.perceptual)
        self.losses = ImageLosses(distances, accelerator.device, config.precision)
        self.discriminator_trainer: DiscriminatorTrainer | None = None
        if config.adversarial.weight:
            self.discriminator_trainer = DiscriminatorTrainer(
                config.adversarial, self.inpainter.image_size, accelerator, steps, config.precision
            )
        self._shapes = shapes

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        config, metrics = self.config, dict[str, Tensor]()
        discriminator_trainer = (
            self.discriminator_trainer
            if self.discriminator_trainer is not None and self.discriminator_trainer.factor(step) > 0
            else None
        )
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        local, share = len(batches[0]), 1 / len(batches)
        lost = [self._corrupt(batch, step, (part * processes + rank) * local) for part, batch in enumerate(batches)]
        # Every word of the step counts alike, wherever it is read: gradients are averaged over the processes.
        per_word = weight_of_each(self.accelerator, [one.text.chosen.sum() for one in lost])

        # 1. The network.
        parts = list(zip(batches, lost, strict=True))
        for _, (batch, (holes, text)) in accumulate(self.accelerator, self._parallel_network, parts):
            ids = mask_words(text, self.network.trunk.parts.tokens.mask_id)
            with self._autocast():
                completed = self._parallel_network(mask_images(batch.images, holes), ids, text.chosen)
            predicted = tell(completed.logits, text)
            hole, valid = inpainting_distances(completed.images, batch.images, holes)
            whole = composite(completed.images, batch.images, holes)
            terms = {"hole": config.hole_weight * hole, "valid": config.visible_weight * valid}
            terms |= self.losses(whole, batch.images)
            images = torch.stack(list(terms.values())).sum()
            step_metrics: dict[str, Tensor] = {}
            if discriminator_trainer is not None:
                terms["adversarial"], step_metrics["adversarial_weight"] = discriminator_trainer.generator_loss(
                    whole, images, self.network.last_layer, step
                )
                images = images + terms["adversarial"]
            words = config.text_weight * predicted.nats * per_word
            loss = images * share + words
            self.accelerator.backward(loss)
            add_share(metrics, {"loss": loss, "loss_words": words, "word_accuracy": predicted.right * per_word}, 1.0)
            add_share(metrics, step_metrics | {f"loss_{name}": value for name, value in terms.items()}, share)
        metrics |= self.optimizer.step(step)
        if not metrics["skipped"]:
            self.ema.update(self.network, step)

        # 2. The discriminator, on these images and those that the network has just completed.
        if discriminator_trainer is not None:
            metrics |= discriminator_trainer.update([batch.images for batch in batches], step)
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers."""
        remedy = "lower task.optimizer.learning_rate, set task.optimizer.clip_norm, or set task.precision to fp32"
        findings = []
        if not_finite := [name for name, value in metrics.items() if not math.isfinite(value)]:
            findings.append(f"not finite: {', '.join(not_finite)}; {remedy}.")
        return findings + about_skipped_steps(metrics, remedy)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The metrics of `evaluate_inpainter`, of the averaged weights."""
        corruption = self.config.corruption
        return evaluate_inpainter(self.inpainter, batches, self.accelerator, corruption, self._seed, self._shapes)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """What is given beside what is made of it: images with holes, captions with blanks."""
        holes, text = self._corrupt(batch, VAL_STEP, 0)
        mask_id = self.network.trunk.parts.tokens.mask_id
        # Words that were exchanged or left in their place are asked for in training alone.
        ids = torch.where(text.hidden, mask_id, text.whole)
        filled = self.inpainter.fill(batch.images, holes, ids, text.hidden)
        images, captions, mark = [], [], self.inpainter.masked_captions.mark
        given = to_pil(mask_images(batch.images, holes))
        rows = zip(given, to_pil(filled.images), text.whole.cpu(), filled.ids.cpu(), text.hidden.cpu(), strict=True)
        for before, after, whole, predicted, hidden in rows:
            images += [before, after]
            captions += [mark(whole, hidden, ("(", ")")), mark(predicted, hidden, _MARKS)]
        return contact_sheet(images, captions)

    def stateful(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {"network": self.network, "ema": self.ema, "optimizer": self.optimizer}
        return parts | (self.discriminator_trainer.stateful() if self.discriminator_trainer is not None else {})

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return self.losses.frozen_parts("task")

    def save_model(self, folder: Path) -> None:
        """The averaged network with its vocabulary, as a model folder."""
        self.inpainter.save_pretrained(folder)

    def _corrupt(self, batch: Batch, step: int, start: int) -> CorruptedPair:
        return corrupt_batch(self.inpainter, batch, self.config.corruption, self._seed, step, start)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
