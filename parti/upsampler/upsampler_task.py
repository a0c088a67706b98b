"""What an upsampler's training minimizes: the distance of an enlarged reconstruction to the large original.

What it will enlarge is what the image tokenizer decodes, so that is what it learns on: a large image is made small,
goes through the frozen tokenizer, and the upsampler has to give the large one back (Parti; papers.md D.5). Losses and
weights are those of the tokenizer itself: l2, perceptual, adversarial.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from parti.upsampler.upsampler import Upsampler, bicubic
from vqgan.contact_sheet import comparison_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.discriminator_trainer import AdversarialConfig, DiscriminatorTrainer
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.fidelity import psnr, ssim
from vqgan.metrics.sums import MetricSums
from vqgan.training.monitor.diagnostics_log import about_skipped_steps
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share
from vqgan.training.task import Stateful


class UpsamplerTaskConfig(ImageLossesConfig, may_change=("precision",)):
    """Weights of the losses, and how the upsampler learns."""

    adversarial: AdversarialConfig = AdversarialConfig()
    """The adversarial term."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The upsampler's optimizer."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks in training; losses, weights and the image tokenizer are fp32 in any case."""

    @model_validator(mode="after")
    def _check_originals_count(self) -> "UpsamplerTaskConfig":
        if not (self.l1_weight or self.l2_weight or self.perceptual.weight):
            raise ValueError(
                "l1_weight, l2_weight and perceptual.weight are all 0: nothing says what an image should look like; "
                "give one of them a weight"
            )
        return self


class UpsamplerTask:
    """Trains an upsampler behind a frozen tokenizer, against a discriminator if the adversarial weight is positive."""

    def __init__(
        self,
        config: UpsamplerTaskConfig,
        upsampler: Upsampler,
        image_tokenizer: ImageTokenizer,
        accelerator: Accelerator,
        steps: int,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        device = accelerator.device
        self.image_tokenizer = image_tokenizer.to(device)
        # Channels last: convolutions take less time on a CPU.
        self.upsampler: Upsampler = upsampler.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parallel_upsampler = accelerator.prepare_model(self.upsampler)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, self.upsampler)
        self.optimizer = Optimizer(config.optimizer, self.upsampler, steps)
        self.losses = ImageLosses(config, device, config.precision)
        self.discriminator_trainer: DiscriminatorTrainer | None = None
        if config.adversarial.weight:
            image_size = image_tokenizer.image_size * upsampler.config.scale
            self.discriminator_trainer = DiscriminatorTrainer(
                config.adversarial, image_size, accelerator, steps, config.precision
            )

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        discriminator_trainer = (
            self.discriminator_trainer
            if self.discriminator_trainer is not None and self.discriminator_trainer.factor(step) > 0
            else None
        )
        parts = [batch.images for batch in batches]
        share = 1 / len(parts)

        # 1. The upsampler.
        for _, images in accumulate(self.accelerator, self._parallel_upsampler, parts):
            reconstructions = self.reconstruct(images)
            with self._autocast():
                enlarged = self._parallel_upsampler(reconstructions)
            terms = self.losses(enlarged, images)
            total = torch.stack(list(terms.values())).sum()
            step_metrics: dict[str, Tensor] = {}
            if discriminator_trainer is not None:
                terms["adversarial"], step_metrics["adversarial_weight"] = discriminator_trainer.generator_loss(
                    enlarged, total, self.upsampler.last_layer, step
                )
                total = total + terms["adversarial"]
            self.accelerator.backward(total * share)
            step_metrics |= {"loss": total} | {f"loss_{name}": value for name, value in terms.items()}
            add_share(metrics, step_metrics, share)
        metrics |= self.optimizer.step(step)
        if not metrics["skipped"]:
            self.ema.update(self.upsampler, step)

        # 2. The discriminator, on these images and those that the upsampler has just drawn.
        if discriminator_trainer is not None:
            metrics |= discriminator_trainer.update(parts, step)
        return metrics

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """What the upsampler reads: originals made small (means over squares of pixels), to codes and back."""
        small = F.avg_pool2d(images, self.upsampler.config.scale)
        return self.image_tokenizer.decode(self.image_tokenizer.encode(small))

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers."""
        remedy = (
            "lower task.optimizer.learning_rate (with a discriminator also task.adversarial.optimizer.learning_rate), "
            "set task.optimizer.clip_norm, or set task.precision to fp32"
        )
        findings = []
        if lost := [name for name, value in metrics.items() if not math.isfinite(value)]:
            findings.append(f"not finite: {', '.join(lost)}; {remedy}.")
        findings += about_skipped_steps(metrics, remedy)
        return findings

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

    def stateful(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {"upsampler": self.upsampler, "ema": self.ema, "optimizer": self.optimizer}
        return parts | (self.discriminator_trainer.stateful() if self.discriminator_trainer is not None else {})

    def frozen_parts(self) -> dict[str, FrozenPart]:
        image = self.image_tokenizer
        parts = image.codes_fingerprint()._asdict() | {"decoder": image.decoder_fingerprint()}
        return {"image_tokenizer": FrozenPart(parts)} | self.losses.frozen_parts("task")

    def save_model(self, folder: Path) -> None:
        """The averaged upsampler as a model folder."""
        self.ema.module.save_pretrained(folder)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
