"""Trains the discriminator of stage 1: its optimizer, its penalties and its start.

The generator's side asks it for `generator_loss`; `update` is the discriminator's own step. Between the two the
discriminator does not change, so one pass over the generated images serves both. Penalties: lazy R1
(Mescheder, 1801.04406; lazily as in StyleGAN2, 1912.04958, appendix B) and LeCam (Tseng, 2104.03310).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schedule import Span, ramp
from vqgan.config.schema import Config, ConfigError
from vqgan.data.batch import Batch
from vqgan.hub.construction import within_memory
from vqgan.losses.adversarial import ADVERSARIAL_LOSSES, adaptive_weight, lecam_penalty, r1_penalty
from vqgan.models.discriminator import DiscriminatorConfig, StyleGAN2DiscriminatorConfig, build_discriminator
from vqgan.training.learner import Learner, Opponent
from vqgan.training.objective import Objective
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.optim.precision import Precision
from vqgan.training.parallel.sharding import is_sharded
from vqgan.training.task import Stateful

PartT = TypeVar("PartT")


class AdversarialConfig(
    Config,
    fixed=("loss",),
    may_change=(
        "weight",
        "adaptive",
        "start",
        "warmup",
        "r1_gamma",
        "r1_every",
        "lecam_weight",
        "lecam_decay",
        "batch_fraction",
    ),
):
    """The adversarial loss, its discriminator and when they start."""

    weight: float = Field(0.1, ge=0)
    """Weight of the generator's loss; 0 leaves the discriminator out."""
    adaptive: bool = False
    """Scale the weight so that its gradient at the decoder's last layer equals the reconstruction's (taming)."""
    loss: Literal["non_saturating", "hinge", "vanilla"] = "non_saturating"
    """Form of the losses of generator and discriminator."""
    discriminator: DiscriminatorConfig = StyleGAN2DiscriminatorConfig()
    """The discriminator's network."""
    start: Span = 0
    """When adversarial training starts: steps, or a share of the run such as 25%."""
    warmup: Span = 0
    """Warm-up of the generator's weight after that: steps, or a share of the run."""
    r1_gamma: float = Field(10.0, ge=0)
    """R1 penalty: gamma / 2 times the squared gradient at real images; 0 none."""
    r1_every: int = Field(16, gt=0)
    """Steps between R1 penalties, each scaled by this number (lazy regularization)."""
    lecam_weight: float = Field(0.0, ge=0)
    """LeCam penalty: keeps logits near the running average of the other class, which helps on little data; 0 none."""
    lecam_decay: float = Field(0.99, ge=0, lt=1)
    """Decay of LeCam's running averages."""
    batch_fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of each batch that the discriminator sees: less is cheaper."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The discriminator's optimizer."""


class DiscriminatorTrainer:
    """A discriminator in training; `precision` is that of its forward passes."""

    def __init__(
        self,
        config: AdversarialConfig,
        image_size: int,
        accelerator: Accelerator,
        steps: int,
        precision: Precision,
    ) -> None:
        self.config = config
        self.steps = steps
        discriminator = within_memory(lambda: build_discriminator(config.discriminator, image_size)).to(
            accelerator.device
        )
        # Channels last: convolutions take half the time on a CPU.
        self.discriminator: nn.Module = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._learner = Opponent(config.optimizer, precision, discriminator, accelerator, steps)
        self.optimizer = self._learner.optimizer
        self._losses = ADVERSARIAL_LOSSES[config.loss]
        self._fake_logits: list[Tensor] = []
        self._averages = _LogitAverages(config.lecam_decay, accelerator)

    def factor(self, step: int) -> float:
        """Returns the factor of the generator's weight at `step`; 0 before adversarial training starts."""
        return ramp(step, self.steps, self.config.start, self.config.warmup)

    def generator_loss(
        self,
        reconstructions: Float[Tensor, "B 3 H W"],
        reconstruction_loss: Float[Tensor, ""],
        last_layer: nn.Parameter,
        step: int,
        scale: float = 1.0,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns the generator's weighted loss and its weight, which is adaptive if the config says so.

        `scale` is that of the generator's loss in fp16: gradients within are small in the same way.
        """
        images = reconstructions.detach().float().requires_grad_()
        # Not the data-parallel wrapper: no gradient of a weight is exchanged before `update`.
        with self._learner.autocast():
            logits = self.discriminator(self._shown(images)).float()
        self._fake_logits.append(logits)
        loss = self._losses.generator(logits)
        # To the images alone, not into the weights; the logits with their graph serve `update` once more.
        (gradient,) = torch.autograd.grad(loss * scale, images, retain_graph=True)
        loss = loss.detach() + ((reconstructions - images.detach()) * (gradient / scale)).sum()
        weight: float | Tensor = self.config.weight
        if self.config.adaptive:
            weight = adaptive_weight(reconstruction_loss * scale, loss * scale, last_layer, self.config.weight)
        weight = self.factor(step) * weight
        return weight * loss, torch.as_tensor(weight)

    def update(self, real: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """One step on micro-batches of images (B, 3, H, W) and on what `generator_loss` was shown for each."""
        parts = list(zip(map(self._shown, real), self._fake_logits, strict=True))
        metrics = self._learner.backward(parts, lambda part: self._loss(*part, step))
        self._fake_logits.clear()
        return metrics | {f"discriminator_{name}": value for name, value in self._learner.update(step).items()}

    def stateful(self) -> dict[str, Stateful]:
        """Returns what a resumed run needs."""
        return {
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.optimizer,
            "logit_averages": self._averages,
        }

    def _loss(self, real: Tensor, fake_logits: Tensor, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        config = self.config
        real_logits = self._learner(real).float()
        loss = self._losses.discriminator(real_logits, fake_logits)
        metrics = {
            "loss_discriminator": loss.detach(),
            "real_accuracy": (real_logits > 0).float().mean(),
            "fake_accuracy": (fake_logits < 0).float().mean(),
        }
        if config.lecam_weight:
            penalty = lecam_penalty(real_logits, fake_logits, *self._averages.update(real_logits, fake_logits))
            metrics["lecam_penalty"] = penalty.detach()
            loss = loss + config.lecam_weight * penalty
        if config.r1_gamma and step % config.r1_every == 0:
            penalty = r1_penalty(self._learner.parallel, real)
            metrics["r1_penalty"] = penalty.detach()
            loss = loss + config.r1_gamma / 2 * config.r1_every * penalty
        return loss, metrics

    def _shown(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return leading_fraction(self.config.batch_fraction, images)


class AdversarialObjective(Objective[PartT], Generic[PartT]):
    """The task of a network whose images a discriminator may judge: of `loss` and `judged_images` the rest follows.

    `discriminator_trainer` is None where the adversarial weight is 0.
    """

    def __init__(self, learner: Learner[Any], config: AdversarialConfig, image_size: int) -> None:
        super().__init__(learner)
        self.discriminator_trainer: DiscriminatorTrainer | None = None
        if config.weight and config.adaptive and is_sharded(learner.accelerator):
            raise ConfigError(
                "task.adversarial.adaptive is true, but the last layer, at which it compares gradients, is sharded "
                "(FSDP2); set it to false, or use configs/accelerate/ddp.yaml"
            )
        if config.weight:
            self.discriminator_trainer = DiscriminatorTrainer(
                config, image_size, learner.accelerator, learner.steps, learner.precision
            )

    def opponent(self, step: int) -> DiscriminatorTrainer | None:
        """The discriminator, from the step on in which both players start."""
        trainer = self.discriminator_trainer
        return trainer if trainer is not None and trainer.factor(step) > 0 else None

    def generator_loss(
        self, images: Float[Tensor, "B 3 H W"], so_far: Float[Tensor, ""], last_layer: nn.Parameter, step: int
    ) -> Mapping[str, Float[Tensor, ""]]:
        """The weighted adversarial loss and its weight, by their names; empty before it starts.

        `so_far` is the sum of the other losses, which an adaptive weight compares with at `last_layer`.
        """
        if (opponent := self.opponent(step)) is None:
            return {}
        loss, weight = opponent.generator_loss(images, so_far, last_layer, step, self.learner.scale)
        return {"loss_adversarial": loss, "adversarial_weight": weight}

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        # 1. The network.
        metrics = super().train_step(batches, step)
        # 2. The discriminator, on these images and those that the network has just made of them.
        if (opponent := self.opponent(step)) is not None:
            metrics |= opponent.update([batch.images for batch in batches], step)
        return metrics

    def stateful(self) -> dict[str, Stateful]:
        trainer = self.discriminator_trainer
        return super().stateful() | ({} if trainer is None else trainer.stateful())


class _LogitAverages:
    """Running means of D(real) and D(fake) over all processes, for LeCam; the first batch starts them."""

    def __init__(self, decay: float, accelerator: Accelerator) -> None:
        self._decay = decay
        self._accelerator = accelerator
        self._means: Float[Tensor, "2"] | None = None

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns the averages with this batch. One that is not finite leaves them as they are."""
        new = torch.stack([real.mean(), fake.mean()])
        if self._accelerator.num_processes > 1:
            new = torch.as_tensor(self._accelerator.reduce(new, reduction="mean"))
        if self._means is None:
            self._means = new.nan_to_num(0.0, 0.0, 0.0)
        moved = torch.lerp(new, self._means, self._decay)
        self._means = torch.where(moved.isfinite(), moved, self._means)
        return self._means[0], self._means[1]

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = None if state["means"] is None else state["means"].to(self._accelerator.device)


def leading_fraction(share: float, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Returns the first `share` of a batch, at least one image, laid out for convolutions (channels last)."""
    return images[: max(1, round(share * len(images)))].contiguous(memory_format=torch.channels_last)
