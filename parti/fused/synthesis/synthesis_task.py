"""Training of progressive text-to-image generation: adversarial, with a discriminator at every scale.

All scales train jointly (StackGAN++), and the discriminators distinguish matching from mismatched captions (AttnGAN;
papers.md E.5). Optional terms: a contrastive loss between images and captions, and the distance of a generated image to
the caption's own image (pix2pix, arXiv 1611.07004), for captions that describe nearly all of the image; an encoder then
encodes the rest (`parti.fused.synthesis.posterior_encoder`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int64
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from parti.fused.synthesis.diagnostics import diagnose_synthesis
from parti.fused.synthesis.discriminators import DiscriminatorOutputs, Discriminators
from parti.fused.synthesis.generator import SynthesisGenerator
from parti.fused.synthesis.losses import GAN_LOSSES, discriminator_terms, generator_loss
from parti.fused.synthesis.matching import JointMatchingConfig, MatchingConfig, clip_matcher
from parti.fused.synthesis.noise import seeded_noise
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.fused.synthesis.posterior_encoder import GeneratorWithEncoder, PosteriorEncoder
from parti.fused.synthesis.scales import at_scales, side_by_side
from parti.losses.contrastive import Contrast, contrastive_loss
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schedule import ScheduleConfig, Span, in_steps, ramp
from vqgan.config.schema import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.image_losses import ImageLosses, ImageLossesConfig, PerceptualTermConfig
from vqgan.losses.adversarial import r1_penalty
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.metrics.sums import MetricSums
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics, LowRate, Opponent
from vqgan.training.objective import Objective
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.parallel.gradient_accumulation import rows_of
from vqgan.training.task import Stateful

_ADAM = OptimizerConfig(
    learning_rate=2e-4, betas=(0.5, 0.999), weight_decay=0.0, schedule=ScheduleConfig(shape="constant")
)
"""AttnGAN's `code/trainer.py`, for generator and discriminators."""
_SHOWN = 128
"""Pixels of a small image in previews, where three stand side by side."""
_NO_DISTANCE = ImageLossesConfig(l2_weight=0.0, perceptual=PerceptualTermConfig(weight=0.0))


class AdversarialConfig(Config, fixed=("loss",), may_change=("weight", "start", "warmup", "r1_gamma", "r1_every")):
    """The adversarial loss."""

    loss: Literal["logistic", "hinge"] = "logistic"
    """Form of the losses of generator and discriminators: logistic is AttnGAN's cross-entropy."""
    weight: float = Field(1.0, gt=0)
    """Weight in the generator's loss."""
    start: Span = 0
    """When adversarial training starts: steps, or a share of the run such as 25%. Until then only the distance
    trains."""
    warmup: Span = 0
    """Warm-up of the generator's adversarial and matching weights after that."""
    r1_gamma: float = Field(0.0, ge=0)
    """R1 penalty at the largest scale: gamma / 2 times the squared gradient at real images; 0 none."""
    r1_every: int = Field(16, gt=0)
    """Steps between R1 penalties, each scaled by this number (lazy regularization)."""


class SynthesisTaskConfig(
    LearnerConfig,
    may_change=(
        *("matching", "scale_starts", "posterior_start", "posterior_fraction", "divergence_weight"),
        *("reconstruction_end", "bert_lr_ratio", "sampled_prompts"),
    ),
):
    """Losses and optimizers of generator and discriminators."""

    adversarial: AdversarialConfig = AdversarialConfig()
    """The adversarial loss."""
    matching: MatchingConfig | None = None
    """Contrastive term between images and captions; null: none."""
    distance: ImageLossesConfig = _NO_DISTANCE
    """Distance to the caption's own image, summed over the scales; weights of 0: none."""
    scale_starts: tuple[Span, Span, Span] = (0, 0, 0)
    """When each scale starts to be generated, from the smallest: small images are cheap, and enough to learn what
    captions mean. The last must not start later than adversarial training."""
    posterior_start: Span = 0
    """With an encoder: when it starts. Until then images are explained by captions only, so that it need not encode
    what captions say."""
    posterior_fraction: float = Field(0.5, gt=0, le=1)
    """With an encoder: fraction of the images that are generated with the noise of their real ones, once adversarial
    training has started; until then all are. The distance applies to these only."""
    divergence_weight: float = Field(0.03, gt=0)
    """With an encoder: weight of a nat of its divergence, for each scale that is generated."""
    reconstruction_end: Span | None = None
    """When the weight of the distance reaches 0, linearly from the start of adversarial training: the mean of all
    images of a caption is not a valid image, and in the end holds the generator back. null: the weight is constant."""
    optimizer: OptimizerConfig = _ADAM
    """The generator's optimizer."""
    bert_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of the generator's embeddings and BertLayers, as a fraction of that of its other parts."""
    discriminator_optimizer: OptimizerConfig = _ADAM
    """The discriminators' optimizer."""
    sampled_prompts: int = Field(128, gt=0)
    """Number of validation captions sampled in each evaluation."""

    @model_validator(mode="after")
    def _check_something_teaches_from_the_first_step(self) -> "SynthesisTaskConfig":
        start, distance = self.adversarial.start, self.distance
        if start not in (0, "0%") and not (distance.l1_weight or distance.l2_weight or distance.perceptual.weight):
            raise ValueError(
                f"adversarial.start is {start}, and until then nothing is minimized; give distance a weight, or set "
                "adversarial.start to 0"
            )
        return self


class _Part(NamedTuple):
    """A micro-batch of this process, as generator and discriminators see it."""

    captions: list[str]
    ids: Int64[Tensor, "B T"]
    noise: Float[Tensor, "B Z h w"]
    real: list[Tensor]

    @property
    def wrong(self) -> Bool[Tensor, "B"]:
        """Images whose caption differs from that of the previous image."""
        return (self.ids != self.ids.roll(1, 0)).any(1)


class SynthesisTask(Objective[_Part]):
    """Trains a generator against the discriminators of its scales."""

    def __init__(
        self,
        config: SynthesisTaskConfig,
        generator: SynthesisGenerator,
        encoder: PosteriorEncoder | None,
        discriminators: Discriminators,
        tokenizer: TextTokenizer,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        check_image: CaptionChecker | None = None,
    ) -> None:
        painter = GeneratorWithEncoder(generator, encoder).train()
        low_rate = LowRate([generator.parts.embeddings, generator.parts.text], config.bert_lr_ratio)
        super().__init__(Learner(config, painter, accelerator, steps, averaged=generator, low_rate=low_rate))
        self._opponent = Opponent(
            config.discriminator_optimizer,
            self.learner.precision,
            discriminators.train(),
            accelerator,
            steps,
            constrain=discriminators.limit_matching_scale,
        )
        self.config = config
        self.tokenizer = tokenizer
        self._seed = seed
        self._check_image = check_image
        self.generator = generator
        self.encoder = encoder
        self.discriminators = discriminators
        self.discriminator_optimizer = self._opponent.optimizer
        self.losses = ImageLosses(config.distance, accelerator.device, config.precision)
        self.clip = clip_matcher(config.matching, accelerator.device)
        self._gan_losses = GAN_LOSSES[config.adversarial.loss]
        self._steps = steps
        self._outputs: list[DiscriminatorOutputs] = []

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        # 1. The generator. The discriminators' outputs for its images are used again below.
        parts = self.parts(batches, step)
        metrics = self.learner.backward(parts, lambda part: self.loss(part, step)) | self.learner.update(step)
        if not self._playing(step):
            return metrics

        # 2. The discriminators, on real images and on those just generated.
        # Every mismatched caption of the step has the same weight: micro-batches have different numbers of them.
        per_wrong = self.learner.weight_of_each([part.wrong.sum() for part in parts])
        seen = list(zip(parts, self._outputs, strict=True))
        metrics |= self._opponent.backward(seen, lambda one: self._discriminator_loss(*one, per_wrong, step))
        self._outputs.clear()
        return metrics | {f"discriminator_{name}": value for name, value in self._opponent.update(step).items()}

    def loss(self, part: _Part, step: int) -> LossAndMetrics:
        """Returns the generator's loss, as a value with the gradient of the losses at its images."""
        playing, scales, size = self._playing(step), self._scales(step), len(part.ids)
        explained = self._posterior(size, step, playing)
        compared = explained or size
        generated, divergence = self.learner(part.ids, part.noise, part.real[-1][:explained], scales)
        images = [image.detach().requires_grad_() for image in generated]
        terms = self._distances([image[:compared] for image in images], part, step)
        if playing:
            # Not the data-parallel wrapper: no gradient of a discriminator's weight is exchanged before its own step.
            with self._opponent.autocast():
                self._outputs.append(self.discriminators(images, part.ids))
            terms |= self._adversarial_losses(images, part, self._outputs[-1], step)
        loss = torch.stack(list(terms.values())).sum()
        # To the images alone, not into the discriminators' weights, and from there into the generator's.
        scale = self.learner.scale
        gradients = [one / scale for one in torch.autograd.grad(loss * scale, images, retain_graph=True)]
        penalty = self.config.divergence_weight * scales * divergence
        metrics = {"loss": loss + penalty} | {f"loss_{name}": value for name, value in terms.items()}
        if explained:
            metrics |= {"loss_divergence": penalty, "divergence": divergence}
        return _with_gradients(generated, gradients) + penalty, metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings from the metrics of a log line."""
        adversarial_steps = metrics.get("step", 0.0) - in_steps(self.config.adversarial.start, self._steps)
        return diagnose_synthesis(metrics, self.generator.config.sides, adversarial_steps)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluates the averaged weights on validation captions.

        diversity: mean absolute difference between two images of a caption, in [0, 1]. With a caption checker also
        prompt_accuracy, the fraction of correct images, and random_pairing_accuracy, with the caption of the next
        image.
        """
        model, sums = self._pipeline(), MetricSums(self.accelerator)
        processes = self.accelerator.num_processes
        left = -(-self.config.sampled_prompts // processes)  # at least one each
        seed = 0
        for batch in batches:
            prompts = batch.texts()[:left]
            left -= len(prompts)
            if not prompts:
                break
            first, second = (
                model.generate([(prompt, start + index) for index, prompt in enumerate(prompts)])[-1]
                for start in (seed, seed + self.config.sampled_prompts)
            )
            seed += len(prompts)
            counts = torch.tensor(float(len(prompts)), device=first.device)
            sums.add("diversity", torch.stack([(first - second).abs().mean() / 2 * counts, counts]))
            if self._check_image is not None:
                images = to_pil(first)
                for name, asked in (("prompt", prompts), ("random_pairing", prompts[1:] + prompts[:1])):
                    right = torch.tensor(float(sum(map(self._check_image, images, asked))), device=first.device)
                    sums.add(f"{name}_accuracy", torch.stack([right, counts]))
        totals = sums.totals()
        if not totals:
            raise ValueError("no validation caption to draw; give at least one batch")
        return {name: (total[0] / total[1]).item() for name, total in totals.items()}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of images generated for the batch's captions, all scales side by side."""
        prompts = batch.texts()
        scales = self._pipeline().generate([(prompt, 0) for prompt in prompts])
        marks = list(map(self._check_image, to_pil(scales[-1]), prompts)) if self._check_image else None
        scale = max(1, _SHOWN // self.generator.config.sides[-1])
        return contact_sheet(side_by_side(scales), prompts, columns=3, scale=scale, marks=marks)

    def stateful(self) -> dict[str, Stateful]:
        encoder: dict[str, Stateful] = {} if self.encoder is None else {"encoder": self.encoder}
        names = ("generator", "ema", "optimizer", "discriminators", "discriminator_optimizer")
        return encoder | {name: getattr(self, name) for name in names}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        clip = {} if self.clip is None else {"task.matching.folder": self.clip.as_frozen_part()}
        return clip | self.losses.frozen_parts("task.distance")

    def save_model(self, folder: Path) -> None:
        """Saves the averaged generator and its vocabulary as a model folder."""
        self._pipeline().save_pretrained(folder)

    def _pipeline(self) -> ProgressiveTextToImage:
        return ProgressiveTextToImage(self.ema.module, self.tokenizer)

    def parts(self, batches: Sequence[Batch], step: int) -> list[_Part]:
        """Returns noise that depends on the image's position in the run, not on the number of processes."""
        config = self.generator.config
        parts = []
        for batch, (start, _) in zip(batches, rows_of(self.accelerator, batches), strict=True):
            keys = [(self._seed, step, start + index) for index in range(len(batch))]
            ids = self.tokenizer.encode(batch.texts()).to(batch.images.device)
            noise = seeded_noise(keys, config.noise_shape).to(batch.images.device)
            parts.append(_Part(batch.texts(), ids, noise, at_scales(batch.images, config.sides)))
        return parts

    def _playing(self, step: int) -> bool:
        return ramp(step, self._steps, self.config.adversarial.start, self.config.adversarial.warmup) > 0

    def _scales(self, step: int) -> int:
        """Returns the number of scales generated at a step."""
        return sum(step >= in_steps(start, self._steps) for start in self.config.scale_starts)

    def _posterior(self, size: int, step: int, playing: bool) -> int:
        """Returns how many of `size` images are generated with the noise of their real ones."""
        if self.encoder is None or step < in_steps(self.config.posterior_start, self._steps):
            return 0
        return max(1, round(self.config.posterior_fraction * size)) if playing else size

    def _distances(self, images: Sequence[Tensor], part: _Part, step: int) -> dict[str, Float[Tensor, ""]]:
        """Returns the weighted distances, each summed over the scales."""
        begin, factor = in_steps(self.config.adversarial.start, self._steps), 1.0
        if self.config.reconstruction_end is not None:
            end = in_steps(self.config.reconstruction_end, self._steps)
            factor = min(1.0, max(0.0, (end - step) / max(1.0, end - begin)))
        scales = [
            self.losses(generated, real[: len(generated)]) for generated, real in zip(images, part.real, strict=False)
        ]
        return {name: factor * torch.stack([terms[name] for terms in scales]).sum() for name in scales[0]}

    def _adversarial_losses(
        self, images: Sequence[Tensor], part: _Part, outputs: DiscriminatorOutputs, step: int
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns the weighted adversarial and matching terms, each summed over the scales."""
        config = self.config
        factor = ramp(step, self._steps, config.adversarial.start, config.adversarial.warmup)
        per_scale = [generator_loss(self._gan_losses, (one.unconditional, one.conditional)) for one in outputs.scales]
        terms = {"adversarial": factor * config.adversarial.weight * torch.stack(per_scale).sum()}
        if config.matching is not None:
            terms["matching"] = factor * config.matching.weight * self._matching(images[-1], part, outputs).loss
        return terms

    def _matching(self, largest: Tensor, part: _Part, outputs: DiscriminatorOutputs) -> Contrast:
        if self.clip is not None:
            return self.clip(largest, part.captions, self.accelerator)
        return self._joint_matching(part, outputs)

    def _joint_matching(self, part: _Part, outputs: DiscriminatorOutputs) -> Contrast:
        """Returns the matching loss summed over the scales; the accuracy is that of the largest."""
        scale = self.discriminators.matching_scale()
        found = [
            contrastive_loss(one.embedding, outputs.sentence, part.ids, scale, self.accelerator)
            for one in outputs.scales
            if one.embedding is not None
        ]
        return Contrast(torch.stack([one.loss for one in found]).sum(), found[-1].accuracy)

    def _discriminator_loss(
        self, part: _Part, generated: DiscriminatorOutputs, per_wrong: Tensor, step: int
    ) -> LossAndMetrics:
        """Returns the sum of the weighted terms, and the metrics of the largest scale."""
        config = self.config
        real: DiscriminatorOutputs = self._opponent(part.real, part.ids, wrong=True)
        losses = {}
        for side, seen, faked in zip(self.generator.config.sides, real.scales, generated.scales, strict=True):
            assert seen.wrong is not None
            ours, theirs = (seen.unconditional, seen.conditional), (faked.unconditional, faked.conditional)
            losses[str(side)] = discriminator_terms(
                self._gan_losses, ours, theirs, seen.wrong, part.wrong, per_wrong
            ).total()
        seen, faked = real.scales[-1], generated.scales[-1]
        assert seen.wrong is not None
        metrics = {
            "real_accuracy": (seen.unconditional > 0).float().mean(),
            "fake_accuracy": (faked.unconditional < 0).float().mean(),
            # The matching caption scores higher than the mismatched one, for the same real image.
            "caption_accuracy": ((seen.conditional > seen.wrong) & part.wrong).sum() * per_wrong,
        }
        if isinstance(config.matching, JointMatchingConfig):
            contrast = self._joint_matching(part, real)
            losses["matching"] = config.matching.weight * contrast.loss
            metrics["matched_real"] = contrast.accuracy
        if config.adversarial.r1_gamma and step % config.adversarial.r1_every == 0:
            penalty = self._r1(part)
            losses["r1"] = config.adversarial.r1_gamma / 2 * config.adversarial.r1_every * penalty
            metrics["r1_penalty"] = penalty
        loss = torch.stack(list(losses.values())).sum()
        metrics |= {f"loss_discriminator_{name}": value for name, value in losses.items()}
        return loss, metrics | {"loss_discriminator": loss}

    def _r1(self, part: _Part) -> Float[Tensor, ""]:
        """Computes R1 on both logits, at real images of the largest scale with their captions."""
        network = self.discriminators.networks[-1]
        sentence = self.discriminators.reader(part.ids).detach()

        def logits(images: Tensor) -> Tensor:
            features = network(images)
            return network.unconditional(features) + network.conditional(features, sentence)

        return r1_penalty(logits, part.real[-1])


def _with_gradients(generated: Sequence[Tensor], gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Returns a scalar whose gradient at each of `generated` is the given one."""
    return torch.stack([(one * gradient).sum() for one, gradient in zip(generated, gradients, strict=True)]).sum()
