"""The pretraining task: filling holes and predicting masked words, by one network in one pass.

The loss is 6 times the L1 distance in the holes, once that outside, 0.1 times the perceptual distance of the completed
image, the cross-entropy of the masked words, and optionally an adversarial loss of the completed image.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

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
from parti.text.masked_tokens import score_masked_tokens
from parti.text.tokenizer import TextTokenizer
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.discriminator_trainer import AdversarialConfig, AdversarialObjective
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig, PerceptualTermConfig
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics, LowRate
from vqgan.training.parallel.gradient_accumulation import rows_of

_MARKS = ("[", "]")
"""Marks around predicted words in previews."""


class InpaintingTaskConfig(LearnerConfig, may_change=("hole_weight", "visible_weight", "text_weight", "bert_lr_ratio")):
    """Corruption, weights of the losses, and optimizer."""

    corruption: CorruptionConfig = CorruptionConfig()
    """Holes and masked words."""
    hole_weight: float = Field(6.0, gt=0)
    """Weight of the absolute difference in the holes."""
    visible_weight: float = Field(1.0, ge=0)
    """Weight of the absolute difference outside of them."""
    text_weight: float = Field(1.0, gt=0)
    """Weight of the cross-entropy of masked words."""
    perceptual: PerceptualTermConfig = PerceptualTermConfig()
    """The perceptual distance of the completed image."""
    adversarial: AdversarialConfig = AdversarialConfig(weight=0.0, loss="hinge", r1_gamma=0.0)
    """A discriminator of completed images; weight 0: none."""
    bert_lr_ratio: float = Field(0.2, gt=0)
    """Learning rate of the embeddings and BertLayers, as a share of that of all else."""


class _Part(NamedTuple):
    images: Tensor
    lost: CorruptedPair
    per_word: Tensor
    """Factor of the sum over masked words."""


class InpaintingTask(AdversarialObjective[_Part]):
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
        # Channels last: convolutions take less time on a CPU.
        self.network: InpaintingNetwork = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = network.trunk.parts
        low_rate = LowRate([rows.embeddings, rows.text], config.bert_lr_ratio)
        learner = Learner(config, self.network, accelerator, steps, low_rate=low_rate)
        super().__init__(learner, config.adversarial, network.trunk.config.image_size)
        self.config = config
        self.tokenizer = tokenizer
        self._seed = seed
        distances = ImageLossesConfig(l2_weight=0.0, perceptual=config.perceptual)
        self.losses = ImageLosses(distances, accelerator.device, config.precision)
        self._shapes = shapes

    @property
    def inpainter(self) -> Inpainter:
        """The averaged network with its vocabulary."""
        return Inpainter(self.ema.module, self.tokenizer)

    def parts(self, batches: Sequence[Batch], step: int) -> list[_Part]:
        rows = rows_of(self.accelerator, batches)
        lost = [self._corrupt(batch, step, start) for batch, (start, _) in zip(batches, rows, strict=True)]
        # Every word of the step has the same weight, in whichever micro-batch it is.
        per_word = self.learner.weight_of_each([one.text.chosen.sum() for one in lost])
        return [_Part(batch.images, one, per_word) for batch, one in zip(batches, lost, strict=True)]

    def loss(self, part: _Part, step: int) -> LossAndMetrics:
        config, original, (holes, text) = self.config, part.images, part.lost
        ids = mask_words(text, self.network.trunk.parts.tokens.mask_id)
        completed = self.learner(mask_images(original, holes), ids, text.chosen)
        predicted = score_masked_tokens(completed.logits, text)
        hole, visible = inpainting_distances(completed.images, original, holes)
        whole = composite(completed.images, original, holes)
        terms = {"loss_hole": config.hole_weight * hole, "loss_valid": config.visible_weight * visible}
        terms |= {f"loss_{name}": term for name, term in self.losses(whole, original).items()}
        images = torch.stack(list(terms.values())).sum()
        adversarial = self.generator_loss(whole, images, self.network.last_layer, step)
        if adversarial:
            images = images + adversarial["loss_adversarial"]
        terms["loss_words"] = config.text_weight * predicted.nats * part.per_word
        loss = images + terms["loss_words"]
        return loss, {"loss": loss, "word_accuracy": predicted.correct * part.per_word, **terms, **adversarial}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the metrics of `evaluate_inpainter` with the averaged weights."""
        corruption = self.config.corruption
        return evaluate_inpainter(self.inpainter, batches, self.accelerator, corruption, self._seed, self._shapes)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of inputs and results: images with holes, captions with blanks."""
        holes, text = self._corrupt(batch, VAL_STEP, 0)
        mask_id = self.network.trunk.parts.tokens.mask_id
        # Replaced and unchanged words are predicted in training only.
        ids = torch.where(text.hidden, mask_id, text.whole)
        filled = self.inpainter.fill(batch.images, holes, ids, text.hidden)
        images, captions, mark = [], [], self.inpainter.masked_captions.mark
        given = to_pil(mask_images(batch.images, holes))
        rows = zip(given, to_pil(filled.images), text.whole.cpu(), filled.ids.cpu(), text.hidden.cpu(), strict=True)
        for before, after, whole, predicted, hidden in rows:
            images += [before, after]
            captions += [mark(whole, hidden, ("(", ")")), mark(predicted, hidden, _MARKS)]
        return contact_sheet(images, captions)

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return self.losses.frozen_parts("task")

    def save_model(self, folder: Path) -> None:
        """Saves the averaged network with its vocabulary as a model folder."""
        self.inpainter.save_pretrained(folder)

    def _corrupt(self, batch: Batch, step: int, start: int) -> CorruptedPair:
        return corrupt_batch(self.inpainter, batch, self.config.corruption, self._seed, step, start)
