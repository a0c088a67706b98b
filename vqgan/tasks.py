"""What stage-1 training minimises: the autoencoder's losses, and the discriminator's.

L = l1 + l2 + logit-Laplace + perceptual + adversarial + codebook, each with its weight (ViT-VQGAN, arXiv 2110.04627,
section 3.2; SPEC A.3). The defaults are the paper's weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from vqgan.config import Config
from vqgan.contact_sheet import comparison_sheet
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.evaluation import evaluate_tokenizer
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.losses.adversarial import ADVERSARIAL_LOSSES, adaptive_weight, r1_penalty
from vqgan.losses.perceptual import PerceptualConfig, PerceptualLoss
from vqgan.losses.reconstruction import l1, l2, logit_laplace
from vqgan.metrics.judge import Judge
from vqgan.models import Autoencoder
from vqgan.models.autoencoder import AutoencoderOutput
from vqgan.models.discriminator import DiscriminatorConfig, StyleGAN2DiscriminatorConfig, build_discriminator
from vqgan.quantizers.codebook_care import CodebookCare, CodebookCareConfig
from vqgan.training.checkpoint import Stateful
from vqgan.training.distributed import gather_rows
from vqgan.training.ema import EMA, EMAConfig
from vqgan.training.micro_batches import accumulate, add_share
from vqgan.training.optimisation import Optimiser, OptimiserConfig
from vqgan.training.schedule import ramp

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class PerceptualTermConfig(PerceptualConfig):
    """The perceptual loss (LPIPS) and its weight."""

    weight: float = Field(0.1, ge=0)
    """Weight; 0 leaves the network out."""
    picture_share: float = Field(1.0, gt=0, le=1)
    """Share of each batch that the network sees: less is cheaper."""


class AdversarialTermConfig(Config):
    """The adversarial loss, its discriminator and when they join."""

    weight: float = Field(0.1, ge=0)
    """Weight of the generator's loss; 0 leaves the discriminator out."""
    adaptive: bool = False
    """Scale the weight so that its gradient at the decoder's last layer equals the reconstruction's (taming)."""
    loss: Literal["non_saturating", "hinge", "vanilla"] = "non_saturating"
    """Form of both players' losses."""
    discriminator: DiscriminatorConfig = StyleGAN2DiscriminatorConfig()
    """The discriminator's network."""
    start_share: float = Field(0.0, ge=0, le=1)
    """Share of the run after which both players start."""
    warmup_share: float = Field(0.0, ge=0, le=1)
    """Share of the run over which the generator's weight then grows to its full value."""
    r1_gamma: float = Field(10.0, ge=0)
    """R1 penalty: gamma / 2 times the squared gradient at real pictures; 0 none."""
    r1_every: int = Field(16, gt=0)
    """Steps between R1 penalties, each scaled by this number (lazy regularisation)."""
    picture_share: float = Field(1.0, gt=0, le=1)
    """Share of each batch that the discriminator sees: less is cheaper."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """The discriminator's optimiser."""


class AutoencoderTaskConfig(Config):
    """Weights of the losses, and how the autoencoder learns."""

    l1_weight: float = Field(0.0, ge=0)
    """Weight of the mean absolute error, pictures in [0, 1]."""
    l2_weight: float = Field(1.0, ge=0)
    """Weight of the mean squared error, pictures in [0, 1]."""
    logit_laplace_weight: float = Field(0.0, ge=0)
    """Weight of the logit-Laplace likelihood; needs model.output logit_laplace (the paper has 0.1)."""
    codebook_weight: float = Field(1.0, ge=0)
    """Weight of the quantiser's loss."""
    perceptual: PerceptualTermConfig = PerceptualTermConfig()
    """The perceptual term."""
    adversarial: AdversarialTermConfig = AdversarialTermConfig()
    """The adversarial term."""
    codebook_care: CodebookCareConfig = CodebookCareConfig()
    """How the codebook starts and stays alive."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """The autoencoder's optimiser."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks in training; losses, look-ups and weights are fp32 in any case."""


class AutoencoderTask:
    """Trains an autoencoder, against a discriminator if the adversarial weight is positive."""

    def __init__(
        self,
        config: AutoencoderTaskConfig,
        autoencoder: Autoencoder,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        judge: Judge | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.steps = steps
        self._judge = judge
        device = accelerator.device
        self.autoencoder = autoencoder.to(device)
        # Before anything copies the weights: this gives every process those of rank 0.
        self._parallel_autoencoder = accelerator.prepare_model(autoencoder)
        self.ema = EMA(config.ema, autoencoder)
        self.care = CodebookCare(config.codebook_care, autoencoder.quantizer, seed)
        self.optimiser = Optimiser(config.optimiser, autoencoder, steps)

        self.perceptual: PerceptualLoss | None = None
        if config.perceptual.weight:
            self.perceptual = _channels_last(PerceptualLoss(config.perceptual).to(device))
        self.discriminator: nn.Module | None = None
        if config.adversarial.weight:
            discriminator = build_discriminator(config.adversarial.discriminator, autoencoder.image_size)
            self.discriminator = _channels_last(discriminator.to(device))
            self.discriminator_optimiser = Optimiser(config.adversarial.optimiser, discriminator, steps)
            self._parallel_discriminator = accelerator.prepare_model(discriminator)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        adversarial = self.config.adversarial
        metrics: dict[str, Tensor] = {}
        replaced = self.care.tend(step, self.steps)
        if len(replaced):
            self.ema.module.quantizer.codebook[replaced] = self.autoencoder.quantizer.codebook[replaced].detach()
            metrics["codes_replaced"] = torch.tensor(float(len(replaced)))
        continuous = self.care.is_continuous(step, self.steps)
        adversarial_factor = ramp(step, self.steps, adversarial.start_share, adversarial.warmup_share)
        parts = [batch.images for batch in batches]
        share = 1 / len(parts)

        # 1. The autoencoder.
        reconstructions = []
        for _, images in accumulate(self.accelerator, self._parallel_autoencoder, parts):
            with self._autocast():
                output: AutoencoderOutput = self._parallel_autoencoder(images, quantize=not continuous)
            losses = self._autoencoder_losses(output, images, adversarial_factor)
            total = torch.stack(list(losses.values())).sum()
            if continuous:  # data-parallel training expects every parameter in the graph
                total = total + 0.0 * self.autoencoder.quantizer.codebook.sum()
            self.accelerator.backward(total * share)
            self._observe(output)
            reconstructions.append(output.decoded.images.detach())
            add_share(metrics, {"loss": total} | {f"loss_{name}": value for name, value in losses.items()}, share)
            if output.quantized is not None:
                add_share(metrics, output.quantized.stats, share)
        if continuous:
            self.autoencoder.quantizer.codebook.grad = None  # zeros would age its moments
        metrics |= self.optimiser.step(step)
        self.ema.update(self.autoencoder, step)

        # 2. The discriminator.
        if self.discriminator is not None and adversarial_factor > 0:
            for part, images in accumulate(self.accelerator, self._parallel_discriminator, parts):
                loss, figures = self._discriminator_loss(images, reconstructions[part], step)
                self.accelerator.backward(loss * share)
                add_share(metrics, figures, share)
            updated = self.discriminator_optimiser.step(step)
            metrics |= {f"discriminator_{name}": value for name, value in updated.items()}
        return metrics

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """PSNR, codebook usage and perplexity of the averaged weights; right captions where a judge is known."""
        return evaluate_tokenizer(self._tokenizer(), batches, self.accelerator, self._judge)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Originals beside their reconstructions."""
        tokenizer = self._tokenizer()
        reconstructions = tokenizer.decode(tokenizer.encode(batch.images))
        return comparison_sheet(list(zip(to_pil(batch.images), to_pil(reconstructions), strict=True)))

    def stateful(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "autoencoder": self.autoencoder,
            "ema": self.ema,
            "optimiser": self.optimiser,
            "codebook_care": self.care,
        }
        if self.discriminator is not None:
            parts |= {"discriminator": self.discriminator, "discriminator_optimiser": self.discriminator_optimiser}
        return parts

    def save_model(self, folder: Path) -> None:
        """The averaged autoencoder as an image tokenizer folder."""
        self._tokenizer().save_pretrained(folder)

    def _tokenizer(self) -> ImageTokenizer:
        return ImageTokenizer(self.ema.module)

    def _autoencoder_losses(
        self, output: AutoencoderOutput, images: Tensor, adversarial_factor: float
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms whose sum the autoencoder minimises."""
        config, adversarial = self.config, self.config.adversarial
        decoded = output.decoded
        terms = {}
        if config.l1_weight:
            terms["l1"] = config.l1_weight * l1(decoded.images, images)
        if config.l2_weight:
            terms["l2"] = config.l2_weight * l2(decoded.images, images)
        if config.logit_laplace_weight and decoded.mean is not None and decoded.log_scale is not None:
            likelihood = logit_laplace(decoded.mean, decoded.log_scale, images)
            terms["logit_laplace"] = config.logit_laplace_weight * likelihood
        if self.perceptual is not None:
            shown = (
                _first(config.perceptual.picture_share, decoded.images),
                _first(config.perceptual.picture_share, images),
            )
            with self._autocast():
                terms["perceptual"] = config.perceptual.weight * self.perceptual(*shown)
        if self.discriminator is not None and adversarial_factor > 0:
            weight: float | Tensor = adversarial.weight
            with _frozen(self.discriminator), self._autocast():
                logits = self.discriminator(_first(adversarial.picture_share, decoded.images))
            fooling = ADVERSARIAL_LOSSES[adversarial.loss].generator(logits.float())
            if adversarial.adaptive:
                so_far = torch.stack(list(terms.values())).sum()
                weight = adaptive_weight(so_far, fooling, self.autoencoder.last_layer, adversarial.weight)
            terms["adversarial"] = adversarial_factor * weight * fooling
        if output.quantized is not None:
            terms["codebook"] = config.codebook_weight * output.quantized.loss
        return terms

    def _discriminator_loss(
        self, images: Tensor, reconstruction: Tensor, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        adversarial = self.config.adversarial
        real = _first(adversarial.picture_share, images)
        fake = _first(adversarial.picture_share, reconstruction)
        with self._autocast():
            real_logits = self._parallel_discriminator(real).float()
            fake_logits = self._parallel_discriminator(fake).float()
        loss = ADVERSARIAL_LOSSES[adversarial.loss].discriminator(real_logits, fake_logits)
        figures = {
            "loss_discriminator": loss.detach(),
            "real_accuracy": (real_logits > 0).float().mean(),
            "fake_accuracy": (fake_logits < 0).float().mean(),
        }
        if adversarial.r1_gamma and step % adversarial.r1_every == 0:
            penalty = r1_penalty(self._parallel_discriminator, real)
            figures["r1_penalty"] = penalty.detach()
            loss = loss + adversarial.r1_gamma / 2 * adversarial.r1_every * penalty
        return loss, figures

    @torch.no_grad()
    def _observe(self, output: AutoencoderOutput) -> None:
        latents = gather_rows(self.accelerator, output.latents.flatten(0, 1).float())
        codes = output.quantized.codes.flatten() if output.quantized is not None else None
        self.care.observe(latents, gather_rows(self.accelerator, codes) if codes is not None else None)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _first(share: float, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """The first `share` of a batch, at least one picture, laid out for convolutions (channels last)."""
    return images[: max(1, round(share * len(images)))].contiguous(memory_format=torch.channels_last)


def _channels_last(network: ModuleT) -> ModuleT:
    """The same network with its weights laid out channels last: convolutions take half the time on a CPU."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Gradients flow through `network` to its input, not into its weights."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
