"""Training of an upsampler: the distance of an enlarged reconstruction to the large original.

It is trained on what it will enlarge, reconstructions of the image tokenizer: a large image is downsampled and passed
through the frozen tokenizer, and the upsampler has to restore the large one (Parti; papers.md D.5). Losses and weights
are those of the tokenizer: l2, perceptual, adversarial.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from parti.upsampler.upsampler import TrainedOn, Upsampler, bicubic
from vqgan.contact_sheet import comparison_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.discriminator_trainer import AdversarialConfig, AdversarialObjective
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.fidelity import psnr, ssim
from vqgan.metrics.sums import MetricSums
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics
from vqgan.training.monitor.findings import not_finite


class UpsamplerTaskConfig(ImageLossesConfig, LearnerConfig):
    """Weights of the losses, and optimizer of the upsampler."""

    adversarial: AdversarialConfig = AdversarialConfig()
    """The adversarial term."""

    @model_validator(mode="after")
    def _check_originals_count(self) -> "UpsamplerTaskConfig":
        if not (self.l1_weight or self.l2_weight or self.perceptual.weight):
            raise ValueError(
                "l1_weight, l2_weight and perceptual.weight are all 0: nothing says what an image should look like; "
                "give one of them a weight"
            )
        return self


class UpsamplerTask(AdversarialObjective[Batch]):
    """Trains an upsampler behind a frozen tokenizer, against a discriminator if the adversarial weight is positive."""

    network_name = "upsampler"

    def __init__(
        self,
        config: UpsamplerTaskConfig,
        upsampler: Upsampler,
        image_tokenizer: ImageTokenizer,
        accelerator: Accelerator,
        steps: int,
    ) -> None:
        # Channels last: convolutions take less time on a CPU.
        self.upsampler: Upsampler = upsampler.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner = Learner(config, self.upsampler, accelerator, steps)
        super().__init__(learner, config.adversarial, image_tokenizer.image_size * upsampler.config.scale)
        self.config = config
        self.image_tokenizer = image_tokenizer.to(accelerator.device)
        self.losses = ImageLosses(config, accelerator.device, config.precision)

    def loss(self, part: Batch, step: int) -> LossAndMetrics:
        enlarged = self.learner(self.reconstruct(part.images))
        terms = {f"loss_{name}": term for name, term in self.losses(enlarged, part.images).items()}
        loss = torch.stack(list(terms.values())).sum()
        adversarial = self.generator_loss(enlarged, loss, self.upsampler.last_layer, step)
        if adversarial:
            loss = loss + adversarial["loss_adversarial"]
        return loss, {"loss": loss, **terms, **adversarial}

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Returns the upsampler's input: originals downsampled (area averages), encoded and decoded."""
        small = F.avg_pool2d(images, self.upsampler.config.scale)
        return self.image_tokenizer.decode(self.image_tokenizer.encode(small))

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings about non-finite values."""
        remedy = (
            "lower task.optimizer.learning_rate (with a discriminator also task.adversarial.optimizer.learning_rate), "
            "set task.optimizer.clip_norm, or set task.precision to fp32"
        )
        return not_finite(metrics, remedy)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean PSNR in dB and SSIM of the averaged weights, and of bicubic interpolation of the same reconstructions.

        Raises ValueError where no process has an image.
        """
        sums = MetricSums(self.accelerator)
        sums.add("images", torch.zeros((), device=self.accelerator.device))
        for batch in batches:
            originals = batch.images
            reconstructions = self.reconstruct(originals)
            plain = bicubic(reconstructions, self.upsampler.config.scale)
            sums.add("images", torch.tensor(float(len(batch)), device=originals.device))
            for prefix, enlarged in (("", self.ema.module.upsample(reconstructions)), ("bicubic_", plain)):
                sums.add(f"{prefix}psnr", psnr(enlarged, originals).sum())
                sums.add(f"{prefix}ssim", ssim(enlarged, originals).sum())
        totals = sums.totals()
        images = totals.pop("images").item()
        if not images:
            raise ValueError("no validation image to evaluate on; give at least one batch")
        return {name: total.item() / images for name, total in totals.items()}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Reconstructions enlarged by interpolation beside the same enlarged by the network."""
        reconstructions = self.reconstruct(batch.images)
        plain = to_pil(bicubic(reconstructions, self.upsampler.config.scale))
        pairs = list(zip(plain, to_pil(self.ema.module.upsample(reconstructions)), strict=True))
        return comparison_sheet(pairs, ("bicubic", "upsampled"))

    def frozen_parts(self) -> dict[str, FrozenPart]:
        image = self.image_tokenizer
        parts = image.codes_fingerprint()._asdict() | {"decoder": image.decoder_fingerprint()}
        return {"image_tokenizer": FrozenPart(parts)} | self.losses.frozen_parts("task")

    def save_model(self, folder: Path) -> None:
        """Saves the averaged upsampler as a model folder, which notes the image tokenizer."""
        self.ema.module.trained_on = TrainedOn.of(self.image_tokenizer)
        self.ema.module.save_pretrained(folder)
