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

from parti.fused.inpainting.corruption import CorruptionConfig, Holed, corrupt, emptied, hidden_behind
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.inpainting_losses import hole_distances
from parti.fused.inpainting.network import InpaintingNetwork, composite
from parti.fused.inpainting.shapes_probe import colour_words, first_objects, hole_colours, tellable
from parti.fused.two_rates import TwoRates
from parti.text.tokenizer import TextTokenizer
from parti.text_warm_up.masked import Words, tell
from vqgan.adversary import Adversary, AdversaryConfig
from vqgan.config import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.image_losses import ImageLosses, ImageLossesConfig, PerceptualTermConfig
from vqgan.metrics.sums import MetricSums
from vqgan.training.checkpoint import Stateful
from vqgan.training.ema import EMA, EMAConfig
from vqgan.training.findings import about_skipped_steps
from vqgan.training.micro_batches import accumulate, add_share
from vqgan.training.optimisation import OptimiserConfig

_HELD_OUT_STEP = 0
"""Held-out pairs lose what they would at this step, at every evaluation."""
_MARKS = ("[", "]")
"""Around words that were told, in previews."""


class InpaintingTaskConfig(Config):
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
        self._words = Words(tokenizer)
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
        self._image_size = network.trunk.config.image_size
        if config.adversarial.weight:
            self.adversary = Adversary(config.adversarial, self._image_size, accelerator, steps, config.precision)
        self._shapes = shapes

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        config, metrics = self.config, dict[str, Tensor]()
        adversary = self.adversary if self.adversary is not None and self.adversary.factor(step) > 0 else None
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        local, share = len(batches[0]), 1 / len(batches)
        lost = [
            self._lose(batch, config.corruption, step, (part * processes + rank) * local)
            for part, batch in enumerate(batches)
        ]
        # Every word of the step counts alike, wherever it is read: gradients are averaged over the processes.
        asked = torch.stack([one.text.chosen.sum() for one in lost]).sum()
        per_word = processes / self._sum(asked).clamp(min=1)

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
        """Of the averaged weights, each side filled in with and without the other.

        hole_l1: mean absolute difference in large holes, pictures in [0, 1], with the picture's caption and with that
        of another picture. word_accuracy: long spans, with the picture and with a grey one. With `shapes` also
        hole_colour (a cut-out object has its colour again), colour_words (told, each hidden alone) and
        both_colour_words (hidden at once).
        """
        sums = MetricSums(self.accelerator)
        for batch in batches:
            self._evaluate_holes(batch, sums)
            self._evaluate_words(batch, sums)
            if self._shapes:
                self._evaluate_shapes(batch, sums)
        totals = sums.totals()
        if not totals:
            raise ValueError("no held-out picture to evaluate on; give at least one batch")
        return {name: (total[0] / total[1].clamp(min=1)).item() for name, total in totals.items()}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """What is given beside what is made of it: pictures with holes, captions with blanks."""
        holes, text = self._lose(batch, self.config.corruption, _HELD_OUT_STEP, 0)
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

    def save_model(self, folder: Path) -> None:
        """The averaged network with its vocabulary, as a model folder."""
        self.inpainter.save_pretrained(folder)

    def _evaluate_holes(self, batch: Batch, sums: MetricSums) -> None:
        holes, text = self._lose(batch, _only(self.config.corruption, mostly_picture=1.0), _HELD_OUT_STEP, 0)
        nothing = torch.zeros_like(text.chosen)
        for name, ids in (("hole_l1", text.whole), ("hole_l1_wrong_caption", text.whole.roll(1, 0))):
            filled = self.inpainter.fill(batch.images, holes, ids, nothing).images
            distance = hole_distances(filled, batch.images, holes).hole * batch.images.numel()
            sums.add(name, torch.stack([distance, holes.sum() * 3.0]))

    def _evaluate_words(self, batch: Batch, sums: MetricSums) -> None:
        _, text = self._lose(batch, _only(self.config.corruption, mostly_caption=1.0), _HELD_OUT_STEP, 0)
        ids = hidden_behind(text, self.network.trunk.parts.tokens.mask_id)
        grey = torch.zeros_like(batch.images)
        for name, images in (("word_accuracy", batch.images), ("word_accuracy_without_picture", grey)):
            told = tell(self.ema.module.eval()(images, ids, text.chosen).logits, text)
            sums.add(name, torch.stack([told.right, told.asked]))

    def _evaluate_shapes(self, batch: Batch, sums: MetricSums) -> None:
        captions, objects = batch.texts(), first_objects(batch)
        for name, texts in (("hole_colour", captions), ("hole_colour_wrong_caption", captions[-1:] + captions[:-1])):
            sums.add(name, torch.stack(hole_colours(self.inpainter, batch, texts, objects)))
        if not tellable(self.inpainter.blanks):
            return
        grey = torch.zeros_like(batch.images)
        for name, images in (("colour_words", batch.images), ("colour_words_without_picture", grey)):
            sums.add(name, torch.stack(colour_words(self.inpainter, batch, images)))
        both = colour_words(self.inpainter, batch, batch.images, alone=False)
        sums.add("both_colour_words", torch.stack(both))

    def _lose(self, batch: Batch, config: CorruptionConfig, step: int, start: int) -> Holed:
        ids = self.tokenizer.encode(batch.texts())
        lost = corrupt(ids, self._image_size, self._words, config, seed=self._seed, step=step, start=start)
        return lost.to(batch.images.device)

    def _sum(self, count: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return count
        return torch.as_tensor(self.accelerator.reduce(count, reduction="sum"))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _only(config: CorruptionConfig, mostly_picture: float = 0.0, mostly_caption: float = 0.0) -> CorruptionConfig:
    """`config` with one kind of loss alone."""
    return config.model_copy(update={"mostly_picture": mostly_picture, "mostly_caption": mostly_caption})
