"""What masked image modeling minimizes: the error of what is predicted for masked patches, and of nothing else.

Two kinds: pixels by regression (MAE with squares, SimMIM with absolute values), classes by cross-entropy (BEiT, ViT's
masked patch prediction). Masks of training are a function of (seed, step, row of the global batch), those of
validation of (seed, name of the image); what a step minimizes does not depend on how its batch is divided.

Legend: B batch, N patches, P numbers of a patch, M masked patches of the batch, K classes.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from parti.mim.masking import name_generator, row_generator
from parti.mim.network import ClassNetwork, MaskedImageNetwork, Masks, PixelNetwork
from parti.mim.targets import IMAGENET_STD, ClassTargets, from_imagenet, unpatchify
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.metrics.sums import MetricSums
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics
from vqgan.training.monitor.findings import no_better_than_guessing, not_finite
from vqgan.training.objective import Objective
from vqgan.training.parallel.gradient_accumulation import rows_of

_LEVELS = 256


class MaskedPart(NamedTuple):
    """A micro-batch; `weight` is what the sum over its masked patches is multiplied by."""

    images: Float[Tensor, "B 3 H W"]
    masks: Masks
    weight: Tensor


class MaskedImageTask(Objective[MaskedPart]):
    """Trains a network that predicts masked patches."""

    def __init__(
        self, config: LearnerConfig, network: MaskedImageNetwork, accelerator: Accelerator, steps: int, seed: int
    ) -> None:
        self.network = network.train()
        super().__init__(Learner(config, network, accelerator, steps))
        self.config = config
        self._seed = seed

    def parts(self, batches: Sequence[Batch], step: int) -> list[MaskedPart]:
        masks = []
        for batch, rows in zip(batches, rows_of(self.accelerator, batches), strict=True):
            generators = [row_generator(self._seed, step, rows.start + row) for row in range(len(batch))]
            masks.append(self.network.draw_masks(generators, batch.images.device))
        weight = self.learner.weight_of_each([one[0].sum() for one in masks])
        return [MaskedPart(batch.images, one, weight) for batch, one in zip(batches, masks, strict=True)]

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The error of the averaged network on masked patches, beside that of a constant."""

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Each image, what the network sees of it, and what it makes of that."""
        masks = self.val_masks(batch)
        predicted = self.reconstruct(batch.images, masks)
        seen = torch.where(self._on_pixels(masks[0]), torch.zeros_like(predicted), batch.images)
        rows = zip(to_pil(batch.images), to_pil(seen), to_pil(predicted), strict=True)
        images = [image for row in rows for image in row]
        return contact_sheet(images, ["image", "masked", self.preview_label] * len(batch))

    preview_label = "predicted"
    """What stands beneath predictions in previews."""

    @abstractmethod
    def reconstruct(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1] with what the averaged network predicts in the masked patches."""

    def val_masks(self, batch: Batch) -> Masks:
        """The masks of validation images."""
        generators = [name_generator(self._seed, name) for name in batch.names]
        return self.network.draw_masks(generators, batch.images.device)

    def save_model(self, folder: Path) -> None:
        """The averaged network as a model folder."""
        self.ema.module.save_pretrained(folder)

    def _on_pixels(self, mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B 1 H W"]:
        side = self.network.patch_size
        return mask.unflatten(1, self.network.grid)[:, None].repeat_interleave(side, 2).repeat_interleave(side, 3)


class _PixelTask(MaskedImageTask):
    network: PixelNetwork

    def loss(self, part: MaskedPart, step: int) -> LossAndMetrics:
        del step
        predictions = self.learner(part.images, *part.masks)
        errors = self.errors(predictions.float(), self.network.targets(part.images)).mean(-1)
        # Not a selection of the masked ones, whose number a GPU would have to wait for.
        loss = (errors * part.masks[0]).sum() * part.weight
        return loss, {"loss": loss}

    @abstractmethod
    def errors(self, predictions: Float[Tensor, "B N P"], targets: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
        """The error of each number."""

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B 3 H W"]:
        network = self.ema.module.eval()
        return torch.where(self._on_pixels(masks[0]), network.shown(network(images, *masks), images), images)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """masked_NAME, the mean error of the averaged network on masked patches; constant_NAME, that of the best color
        that is the same everywhere. NAME is `error_name`."""
        sums, network = MetricSums(self.accelerator), self.ema.module.eval()
        sums.add("patches", torch.zeros((), device=self.accelerator.device))
        for batch in batches:
            masks, targets = self.val_masks(batch), network.targets(batch.images)
            errors = self.errors(network(batch.images, *masks), targets).mean(-1)[masks[0]]
            sums.add("patches", torch.tensor(float(len(errors)), device=errors.device))
            sums.add("error", errors.sum())
            self.add_targets(sums, targets[masks[0]])
        totals = _counted(sums)
        return {
            f"masked_{self.error_name}": totals["error"].item() / totals["patches"].item(),
            f"constant_{self.error_name}": self.constant_error(totals),
        }

    error_name: str
    """In the names of metrics."""

    @abstractmethod
    def add_targets(self, sums: MetricSums, targets: Float[Tensor, "M P"]) -> None:
        """Add what `constant_error` needs to know of the targets of masked patches."""

    @abstractmethod
    def constant_error(self, totals: Mapping[str, Tensor]) -> float:
        """The mean error of the best color that is the same everywhere."""


class SquaredErrorTask(_PixelTask):
    """Mean squared error, in units of the targets (MAE, section 3)."""

    error_name = "mse"

    @property
    def preview_label(self) -> str:  # type: ignore[override]
        """Says what the true image has added."""
        normalized = getattr(self.network.config, "normalize_targets", False)
        return "predicted, in the true means and deviations" if normalized else "predicted"

    def errors(self, predictions: Float[Tensor, "B N P"], targets: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
        return (predictions - targets).square()

    def add_targets(self, sums: MetricSums, targets: Float[Tensor, "M P"]) -> None:
        pixels = targets.unflatten(-1, (-1, 3)).flatten(0, 1).double()
        sums.add("first", pixels.sum(0))
        sums.add("second", pixels.square().sum(0))

    def constant_error(self, totals: Mapping[str, Tensor]) -> float:
        pixels = totals["patches"].item() * self.network.patch_size**2
        means, squares = totals["first"] / pixels, totals["second"] / pixels
        return (squares - means.square()).mean().item()


class AbsoluteErrorTask(_PixelTask):
    """Mean absolute error, in ImageNet's units (SimMIM, section 3.4)."""

    error_name = "l1"

    def errors(self, predictions: Float[Tensor, "B N P"], targets: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
        return (predictions - targets).abs()

    def add_targets(self, sums: MetricSums, targets: Float[Tensor, "M P"]) -> None:
        sums.add("levels", _level_counts(targets))

    def constant_error(self, totals: Mapping[str, Tensor]) -> float:
        return _error_of_medians(totals["levels"])


class ClassTask(MaskedImageTask):
    """Cross-entropy of the class of each masked patch."""

    network: ClassNetwork

    def __init__(
        self,
        config: LearnerConfig,
        network: ClassNetwork,
        targets: ClassTargets,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        frozen: Mapping[str, FrozenPart] | None = None,
    ) -> None:
        super().__init__(config, network, accelerator, steps, seed)
        self.targets = targets
        self._frozen = dict(frozen or {})

    def loss(self, part: MaskedPart, step: int) -> LossAndMetrics:
        del step
        classes = self.targets(part.images)[part.masks[0]]
        logits = self.learner(part.images, *part.masks).float()
        loss = F.cross_entropy(logits, classes, reduction="sum") * part.weight
        right = (logits.argmax(-1) == classes).sum() * part.weight
        return loss, {"loss": loss, "masked_accuracy": right}

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers, and a loss that is no better than guessing."""
        return not_finite(metrics) + no_better_than_guessing(metrics, "loss", self.targets.classes, "classes")

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Of the averaged network on masked patches: nats and accuracy, and what one class for all would have.

        unigram_nats: the entropy of how often each class is there. rare_accuracy: where the class is not the most
        frequent one, which is a drawing's paper; rare_constant: the best constant guess there.
        """
        sums, network = MetricSums(self.accelerator), self.ema.module.eval()
        sums.add("patches", torch.zeros((), device=self.accelerator.device))
        for batch in batches:
            masks = self.val_masks(batch)
            classes = self.targets(batch.images)[masks[0]]
            logits = network(batch.images, *masks)
            sums.add("patches", torch.tensor(float(len(classes)), device=classes.device))
            sums.add("nats", F.cross_entropy(logits, classes, reduction="sum"))
            sums.add("counts", torch.bincount(classes, minlength=self.targets.classes))
            right = classes[logits.argmax(-1) == classes]
            sums.add("right", torch.bincount(right, minlength=self.targets.classes))
        totals = _counted(sums)
        counts, right, total = totals["counts"], totals["right"], totals["patches"].item()
        shares = counts[counts > 0] / total
        rare = counts.clone()
        rare[counts.argmax()] = 0
        right_rare = right.sum() - right[counts.argmax()]
        seldom = max(rare.sum().item(), 1.0)
        return {
            "masked_nats": totals["nats"].item() / total,
            "unigram_nats": -(shares * shares.log()).sum().item(),
            "masked_accuracy": right.sum().item() / total,
            "constant_accuracy": counts.max().item() / total,
            "rare_accuracy": right_rare.item() / seldom,
            "rare_constant": rare.max().item() / seldom,
        }

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B 3 H W"]:
        """What the classes stand for: the true ones where nothing is masked."""
        classes = self.targets(images).clone()
        classes[masks[0]] = self.ema.module.eval()(images, *masks).argmax(-1)
        return self.targets.draw(classes, images)

    def frozen_parts(self) -> Mapping[str, FrozenPart]:
        return self._frozen


def _counted(sums: MetricSums) -> dict[str, Tensor]:
    totals = sums.totals()
    if not totals["patches"].item():
        raise ValueError("no validation image to evaluate on; give at least one batch")
    return totals


def _level_counts(targets: Float[Tensor, "M P"]) -> Float[Tensor, "3 256"]:
    """How often each of 256 levels is there, by channel."""
    side = round((targets.shape[-1] // 3) ** 0.5)
    images = from_imagenet(unpatchify(targets[:, None], (1, 1))) if side else targets
    levels = ((images + 1) * 127.5).round().long().clamp(0, _LEVELS - 1)
    return torch.stack([torch.bincount(levels[:, c].flatten(), minlength=_LEVELS) for c in range(3)]).float()


def _error_of_medians(counts: Tensor) -> float:
    """The mean absolute error, in ImageNet's units, of the median level of each channel."""
    levels = torch.arange(_LEVELS, dtype=counts.dtype, device=counts.device)
    errors = []
    for channel, std in zip(counts, IMAGENET_STD, strict=True):
        median = levels[channel.cumsum(0) >= channel.sum() / 2][0]
        errors.append((channel * (levels - median).abs()).sum() / channel.sum() / 255 / std)
    return torch.stack(errors).mean().item()
