"""What the pretraining task minimises: holes filled and hidden words told, by one network in one pass.

6 times the distance in the holes, once that outside, 0.1 times the perceptual distance of the completed picture, the
cross-entropy of the words that are asked for and, where it has a weight, a discriminator's opinion of the completed
picture, once it joins.
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

from parti.fused.inpainting.corruption import CorruptionConfig, Holed, emptied, hidden_behind
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.inpainting_evaluation import HELD_OUT_STEP, evaluate_inpainter, lose
from parti.fused.inpainting.inpainting_losses import hole_distances
from parti.fused.inpainting.network import InpaintingNetwork, composite
from parti.fused.two_rates import TwoRates
from parti.text.tokenizer import TextTokenizer
from parti.text_warm_up.masked import tell
from vqgan.adversary import Adversary, AdversaryConfig
from vqgan.config import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig, PerceptualTermConfig
from vqgan.training.checkpoint import Stateful
from vqgan.training.ema import EMA, EMAConfig
from vqgan.training.findings import about_skipped_steps
from vqgan.training.micro_batches import accumulate, add_share, weight_of_each
from vqgan.training.optimisation import OptimiserConfig

_MARKS = ("[", "]")
"""Around words that were told, in previews."""


class InpaintingTaskConfig(
    Config, may_change=("hole_weight", "valid_weight", "text_weight", "bert_ratio", "precision")
):
    """What is taken away, the weights of the losses, and how the network learns."""

    corruption: CorruptionConfig = CorruptionConfig()
    """Holes and hidden words."""
    hole_weight: float = Field(6.0, gt=0)
    """Weight of the absolute difference in the holes."""
    valid_weight: float = Field(1.0, ge=0)
    """Weight of the absolute difference outside of them."""
    text_weight: float = Field(1.0, gt=0)
    """Weight of the cross-entropy of hidden words."""
    perceptual: PerceptualTermConfig = PerceptualTermConfig()
    """The perceptual distance of the completed picture."""
    adversarial: AdversaryConfig = AdversaryConfig(weight=0.0, loss="hinge", r1_gamma=0.0)
    """A discriminator of completed pictures; weight 0: none."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """The network's optimiser."""
    bert_ratio: float = Field(0.2, gt=0)
    """Learning rate of the embeddings and BertLayers, as a share of that of all else."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks in training; losses, logits and weights are fp32 in any case."""


class InpaintingTask:
    """Trains an inpainting network. `shapes`: whether pictures and captions are of that data set, for its figures."""

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
        self.optimiser = TwoRates(config.optimiser, network, [parts.embeddings, parts.text], config.bert_ratio, steps)
        distances = ImageLossesConfig(l2_weight=0.0, perceptual=config.perceptual)
        self.losses = ImageLosses(distances, accelerator.device, config.precision)
        self.adversary: Adversary | None = None
        if config.adversarial.weight:
            self.adversary = Adversary(
                config.adversarial, self.inpainter.image_size, accelerator, steps, config.precision
            )
        self._shapes = shapes

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        config, metrics = self.config, dict[str, Tensor]()
        adversary = self.adversary if self.adversary is not None and self.adversary.factor(step) > 0 else None
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        local, share = len(batches[0]), 1 / len(batches)
        lost = [self._lose(batch, step, (part * processes + rank) * local) for part, batch in enumerate(batches)]
        # Every word of the step counts alike, wherever it is read: gradients are averaged over the processes.
        per_word = weight_of_each(self.accelerator, [one.text.chosen.sum() for one in lost])

        # 1. The network.
        parts = list(zip(batches, lost, strict=True))
        for _, (batch, (holes, text)) in accumulate(self.accelerator, self._parallel_network, parts):
            ids = hidden_behind(text, self.network.trunk.parts.tokens.mask_id)
            with self._autocast():
                completed = self._parallel_network(emptied(batch.images, holes), ids, text.chosen)
            told = tell(completed.logits, text)
            hole, valid = hole_distances(completed.images, batch.images, holes)
            whole = composite(completed.images, batch.images, holes)
            terms = {"hole": config.hole_weight * hole, "valid": config.valid_weight * valid}
            terms |= self.losses(whole, batch.images)
            pictures = torch.stack(list(terms.values())).sum()
            figures: dict[str, Tensor] = {}
            if adversary is not None:
                terms["adversarial"], figures["adversarial_weight"] = adversary.generator_loss(
                    whole, pictures, self.network.last_layer, step
                )
                pictures = pictures + terms["adversarial"]
            words = config.text_weight * told.nats * per_word
            loss = pictures * share + words
            self.accelerator.backward(loss)
            add_share(metrics, {"loss": loss, "loss_words": words, "word_accuracy": told.right * per_word}, 1.0)
            add_share(metrics, figures | {f"loss_{name}": value for name, value in terms.items()}, share)
        metrics |= self.optimiser.step(step)
        if not metrics["skipped"]:
            self.ema.update(self.network, step)

        # 2. The discriminator, on these pictures and those that the network has just completed.
        if adversary is not None:
            metrics |= adversary.update([batch.images for batch in batches], step)
        return metrics

    def diagnose(self, figures: Mapping[str, float]) -> list[str]:
        """Lost numbers."""
        remedy = "lower task.optimiser.learning_rate, set task.optimiser.clip_norm, or set task.precision to fp32"
        findings = []
        if not_finite := [name for name, value in figures.items() if not math.isfinite(value)]:
            findings.append(f"not finite: {', '.join(not_finite)}; {remedy}.")
        return findings + about_skipped_steps(figures, remedy)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The figures of `evaluate_inpainter`, of the averaged weights."""
        corruption = self.config.corruption
        return evaluate_inpainter(self.inpainter, batches, self.accelerator, corruption, self._seed, self._shapes)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """What is given beside what is made of it: pictures with holes, captions with blanks."""
        holes, text = self._lose(batch, HELD_OUT_STEP, 0)
        mask_id = self.network.trunk.parts.tokens.mask_id
        # Words that were exchanged or left in their place are asked for in training alone.
        ids = torch.where(text.hidden, mask_id, text.whole)
        filled = self.inpainter.fill(batch.images, holes, ids, text.hidden)
        pictures, captions, mark = [], [], self.inpainter.blanks.mark
        given = to_pil(emptied(batch.images, holes))
        rows = zip(given, to_pil(filled.images), text.whole.cpu(), filled.ids.cpu(), text.hidden.cpu(), strict=True)
        for before, after, whole, told, hidden in rows:
            pictures += [before, after]
            captions += [mark(whole, hidden, ("(", ")")), mark(told, hidden, _MARKS)]
        return contact_sheet(pictures, captions)

    def stateful(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {"network": self.network, "ema": self.ema, "optimiser": self.optimiser}
        return parts | (self.adversary.stateful() if self.adversary is not None else {})

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return self.losses.frozen_parts("task")

    def save_model(self, folder: Path) -> None:
        """The averaged network with its vocabulary, as a model folder."""
        self.inpainter.save_pretrained(folder)

    def _lose(self, batch: Batch, step: int, start: int) -> Holed:
        return lose(self.inpainter, batch, self.config.corruption, self._seed, step, start)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
