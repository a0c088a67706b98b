"""Training of stage 1: the autoencoder's losses, and the discriminator's update.

L = l1 + l2 + logit-Laplace + perceptual + adversarial + codebook, each with its weight (ViT-VQGAN, arXiv 2110.04627,
section 3.2; papers.md A.3). The defaults are the paper's weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from PIL import Image
from pydantic import Field
from torch import Tensor

from vqgan.codebook_maintenance import CodebookMaintenance, CodebookMaintenanceConfig, codebooks
from vqgan.config.schedule import in_steps
from vqgan.contact_sheet import comparison_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.diagnostics import diagnose_tokenizer
from vqgan.discriminator_trainer import AdversarialConfig, AdversarialObjective
from vqgan.evaluation import evaluate_tokenizer_and_count
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig
from vqgan.image_tokenizer import CodesFingerprint, ImageTokenizer, codes_fingerprint
from vqgan.losses.reconstruction import logit_laplace
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.metrics.codebook import entropy, norm_spread, perplexity, usage
from vqgan.models import Autoencoder
from vqgan.models.autoencoder import AutoencoderOutput
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics
from vqgan.training.parallel.distributed import all_gather_rows
from vqgan.training.task import Stateful


class AutoencoderTaskConfig(ImageLossesConfig, LearnerConfig, may_change=("logit_laplace_weight", "codebook_weight")):
    """Weights of the losses, and optimizer of the autoencoder."""

    logit_laplace_weight: float = Field(0.0, ge=0)
    """Weight of the logit-Laplace likelihood; needs model.output logit_laplace (the paper has 0.1)."""
    codebook_weight: float = Field(1.0, ge=0)
    """Weight of the quantizer's loss."""
    adversarial: AdversarialConfig = AdversarialConfig()
    """The adversarial term."""
    codebook_maintenance: CodebookMaintenanceConfig = CodebookMaintenanceConfig()
    """Codebook initialization and maintenance."""


class AutoencoderTask(AdversarialObjective[Batch]):
    """Trains an autoencoder, against a discriminator if the adversarial weight is positive.

    An autoencoder whose codes are frozen (`Autoencoder.freeze_codes`) trains only its decoder.
    """

    network_name = "autoencoder"

    def __init__(
        self,
        config: AutoencoderTaskConfig,
        autoencoder: Autoencoder,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        check_image: CaptionChecker | None = None,
    ) -> None:
        super().__init__(Learner(config, autoencoder, accelerator, steps), config.adversarial, autoencoder.image_size)
        self.config = config
        self.steps = steps
        self._check_image = check_image
        self._codes_per_batch = 0
        self._code_counts: Int64[Tensor, "V"] | None = None
        self.autoencoder = autoencoder
        self.maintenance = CodebookMaintenance(config.codebook_maintenance, autoencoder.quantizer, seed)
        self.losses = ImageLosses(config, accelerator.device, config.precision)
        self._unquantized = False
        self._latents: list[Tensor] = []
        self._codes: list[Tensor] = []

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        self.autoencoder.quantizer.at_step(step, self.steps)
        replaced = self.maintenance.step(step, self.steps, self.ema.module.quantizer)
        metrics = super().train_step(batches, step)
        return metrics | ({"codes_replaced": torch.tensor(float(replaced))} if replaced else {})

    def backward(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        self._unquantized = self.maintenance.in_warmup(step, self.steps)
        self._latents, self._codes = [], []
        with self.autoencoder.quantizer.moving_once():
            return super().backward(batches, step)

    def loss(self, part: Batch, step: int) -> LossAndMetrics:
        output: AutoencoderOutput = self.learner(part.images, quantize=not self._unquantized)
        terms, metrics = self._losses(output, part.images, step)
        loss = torch.stack([terms[name] for name in terms]).sum()
        if self._unquantized:  # data-parallel training expects every parameter in the graph
            loss = loss + sum(0.0 * parameter.sum() for parameter in self.autoencoder.quantizer.parameters())
        self._latents.append(output.latents.detach().float())
        if output.quantized is not None:
            self._codes.append(output.quantized.codes)
            metrics |= output.quantized.stats
        return loss, {"loss": loss, **terms, **metrics}

    def update(self, step: int) -> dict[str, Tensor]:
        if self._unquantized:
            for parameter in self.autoencoder.quantizer.parameters():
                parameter.grad = None  # zeros would age its moments
        metrics = super().update(step)
        if not metrics["skipped"]:
            metrics |= self._observe(torch.cat(self._latents), torch.cat(self._codes) if self._codes else None)
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings from the metrics of a log line."""
        quantizer = self.autoencoder.quantizer
        discriminator_steps = metrics.get("step", 0.0) - in_steps(self.config.adversarial.start, self.steps)
        return diagnose_tokenizer(
            metrics,
            quantizer=self.autoencoder.config.quantizer.kind,
            codebook_size=quantizer.codebook_size,
            codes_per_batch=self._codes_per_batch,
            clip_norm=self.config.optimizer.clip_norm,
            discriminator_steps=round(discriminator_steps),
        )

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns PSNR, codebook usage and perplexity of the averaged weights, and the accuracy with a caption
        checker."""
        metrics, self._code_counts = evaluate_tokenizer_and_count(
            self._tokenizer(), batches, self.accelerator, self._check_image
        )
        return metrics

    def code_counts(self) -> Int64[Tensor, "V"] | None:
        """Returns how often each code was hit in the last evaluation; None before the first."""
        return self._code_counts

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of originals and reconstructions."""
        tokenizer = self._tokenizer()
        reconstructions = tokenizer.decode(tokenizer.encode(batch.images))
        return comparison_sheet(list(zip(to_pil(batch.images), to_pil(reconstructions), strict=True)))

    def stateful(self) -> dict[str, Stateful]:
        return super().stateful() | {"codebook_maintenance": self.maintenance}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        codes = dict.fromkeys(CodesFingerprint._fields, "learned in this run")
        if self.autoencoder.codes_are_frozen:
            codes = codes_fingerprint(self.autoencoder)._asdict()
        return {"codes_from": FrozenPart(codes)} | self.losses.frozen_parts("task")

    def save_model(self, folder: Path) -> None:
        """Saves the averaged autoencoder as an image tokenizer folder."""
        self._tokenizer().save_pretrained(folder)

    def _tokenizer(self) -> ImageTokenizer:
        return ImageTokenizer(self.ema.module)

    def _losses(
        self, output: AutoencoderOutput, images: Tensor, step: int
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Tensor]]:
        """Returns the weighted terms of the loss, and metrics."""
        config, decoded = self.config, output.decoded
        terms = {f"loss_{name}": term for name, term in self.losses(decoded.images, images).items()}
        if config.logit_laplace_weight and decoded.mean is not None and decoded.log_scale is not None:
            likelihood = logit_laplace(decoded.mean, decoded.log_scale, images)
            terms["loss_logit_laplace"] = config.logit_laplace_weight * likelihood
        so_far = torch.stack(list(terms.values())).sum()
        adversarial = dict(self.generator_loss(decoded.images, so_far, self.autoencoder.decoder.last_layer, step))
        metrics = {"adversarial_weight": adversarial.pop("adversarial_weight")} if adversarial else {}
        terms |= adversarial
        if output.quantized is not None and not self.autoencoder.codes_are_frozen:
            terms["loss_codebook"] = config.codebook_weight * output.quantized.loss
        return terms, metrics

    @torch.no_grad()
    def _observe(
        self, latents: Float[Tensor, "B N D"], codes: Int64[Tensor, "B M"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        """Passes the step's latents and codes, of all processes, to the codebook maintenance; returns codebook
        metrics."""
        quantizer = self.autoencoder.quantizer
        latents = all_gather_rows(self.accelerator, latents)
        codes = all_gather_rows(self.accelerator, codes) if codes is not None else None
        self.maintenance.update(latents, codes)
        metrics = {}
        if books := codebooks(quantizer):
            metrics["code_norm_spread"] = torch.stack([norm_spread(book.codebook) for book in books]).mean()
        if codes is not None:
            # Not `bincount`: on a GPU it synchronizes.
            hits = torch.zeros(quantizer.codebook_size, dtype=torch.int64, device=codes.device)
            hits.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten()))
            self._codes_per_batch = codes.numel()
            metrics |= {
                "batch_usage": usage(hits),
                "batch_perplexity": perplexity(hits),
                "batch_entropy": entropy(hits),
                "dead_codes": self.maintenance.dead_codes(),
            }
        return metrics
