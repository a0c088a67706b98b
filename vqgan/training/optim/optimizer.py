"""Optimizers with parameter groups by the kind of a parameter, not by its name."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from vqgan.config.schedule import ScheduleConfig
from vqgan.config.schema import Config
from vqgan.training.optim.adafactor import Adafactor
from vqgan.training.optim.learning_rate import LearningRate
from vqgan.training.optim.loss_scale import LossScale
from vqgan.training.parallel.sharded_tensors import shard_like, whole


class OptimizerConfig(
    Config,
    fixed=("kind", "learning_rate_scale", "layer_decay"),
    may_change=("learning_rate", "betas", "momentum", "nesterov", "weight_decay", "adam_ratio", "clip_norm"),
):
    """The optimizer of one network."""

    kind: Literal["adafactor", "adamw", "muon"] = "adamw"
    """adamw; adafactor: Parti's, with one byte of state a weight where adamw has eight; or muon: orthogonalized
    momentum for hidden matrices and Adam for all else (timm.optim.Muon)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Full learning rate, reached after the warm-up."""
    betas: tuple[float, float] = Field((0.9, 0.99), strict=False)
    """Decay rates of both moments, Adam's or Adafactor's; Parti 0.9 and 0.96."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """With muon: momentum of the matrices; short runs want 0.9."""
    nesterov: bool = False
    """With muon: look one step ahead, for all parameters."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay of matrices; norms, biases, embeddings and codebooks have none."""
    adam_ratio: float = Field(1.0, gt=0)
    """With muon: the learning rate of the parameters that Adam trains, as a share of `learning_rate`."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest gradient norm; larger gradients are scaled down to it. null: no clipping."""
    learning_rate_scale: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Parts of the network that learn at another rate, by the beginning of their weights' names: {encoder: 0.1}; 0
    freezes a part. For fine-tuning (start_from)."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each layer learns at this share of the rate of the layer after it; for fine-tuning, 0.65 to 0.9."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""


class Optimizer:
    """A torch optimizer with its schedule and clipping: one call a step.

    The weights of `module` may be divided between processes (see `vqgan.training.parallel.sharding`); their moments
    then are too. With `fp16` the loss must be multiplied by `scale` before the backward pass.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        module: nn.Module,
        steps: int,
        *,
        fp16: bool = False,
        scales: Mapping[int, float] | None = None,
    ) -> None:
        self.config = config
        self.learning_rate = LearningRate(config.schedule, steps)
        self._loss_scale = LossScale(fp16)
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = _build(config, module, scales or {})

    @property
    def scale(self) -> float:
        """Loss scale of this step; `step` unscales the gradients."""
        return self._loss_scale.value

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Apply the gradients at the learning rate of `step`, clear them, and return gradient norm and rate.

        Where a gradient is not finite nothing changes, neither weights nor moments, and `skipped`, a scalar in the
        host's memory, is 1. With several processes the norm is that of gradients which were averaged over all of
        them, and an average with one value that is not finite is not finite: all processes decide alike. With `fp16`
        `overflowed` is 1 as well where the cause may be the scale, which is lower from then on.
        """
        self._loss_scale.unscale(gradients_of(self._parameters))
        norm = self.gradient_norm()
        # The one wait for the device in a step: on a GPU the host cannot queue work ahead of it. Accepted, as a step
        # that must not happen has to be known before the next one is queued.
        is_finite = bool(norm.isfinite())
        scaling = self._loss_scale.settle(is_finite)
        if not is_finite:
            self._optimizer.zero_grad(set_to_none=True)
            return {"skipped": torch.tensor(1.0)} | scaling
        return self.apply(step, norm) | scaling

    def gradient_norm(self) -> torch.Tensor:
        """Of all gradients together, over all processes that have a part of them."""
        return whole(nn.utils.get_total_norm(gradients_of(self._parameters)))

    def apply(self, step: int, norm: torch.Tensor) -> dict[str, torch.Tensor]:
        """The update of `step`, given gradients that are known to be finite, and their norm."""
        rate = self.config.learning_rate * self.learning_rate.factor(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip_norm, norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"gradient_norm": norm.detach(), "learning_rate": torch.tensor(rate), "skipped": torch.tensor(0.0)}

    def state_dict(self) -> dict[str, Any]:
        state = {
            "kind": self.config.kind,
            "optimizer": self._optimizer.state_dict(),
            "learning_rate": self.learning_rate.state_dict(),
        }
        return state | {"loss_scale": self._loss_scale.state_dict()} if self._loss_scale.fp16 else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moments from `state`, settings from this config. Raises ValueError for the state of another optimizer."""
        if state["kind"] != self.config.kind:
            raise ValueError(f"saved by {state['kind']}, now {self.config.kind}")
        self.learning_rate.load_state_dict(state["learning_rate"])
        settings = [
            {name: value for name, value in group.items() if name != "params"} for group in self._optimizer.param_groups
        ]
        self._optimizer.load_state_dict(self._divided(state["optimizer"]))
        if self._loss_scale.fp16 and "loss_scale" in state:
            self._loss_scale.load_state_dict(state["loss_scale"])
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)

    def _divided(self, state: dict[str, Any]) -> dict[str, Any]:
        """Shards the moments of a process that held full weights, like the weights."""
        if isinstance(self._optimizer, Adafactor):
            return state  # knows itself along which side its statistics are divided
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

        def divided(value: Any, like: torch.Tensor) -> Any:
            return shard_like(value, like) if isinstance(value, torch.Tensor) and value.shape == like.shape else value

        moments = {
            index: {name: divided(value, parameters[index]) for name, value in of_one.items()}
            for index, of_one in state["state"].items()
        }
        return state | {"state": moments}


def gradients_of(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """Those that are there."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Returns weights of linear and convolution layers: what weight decay and muon are for."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return [
        parameter
        for layer in module.modules()
        if isinstance(layer, kinds)
        for name, parameter in layer.named_parameters(recurse=False)
        if name == "weight" and parameter.requires_grad
    ]


def _build(config: OptimizerConfig, module: nn.Module, scales: Mapping[int, float]) -> torch.optim.Optimizer:
    matrices = {id(parameter) for parameter in hidden_matrices(module)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            key = (id(parameter) in matrices, scales.get(id(parameter), 1.0))
            groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "lr_scale": scale,
            **({"use_fallback": True} if config.kind == "muon" and not is_matrix else {}),
        }
        for (is_matrix, scale), parameters in groups.items()
    ]
    if config.kind == "adamw":
        return torch.optim.AdamW(settings, lr=config.learning_rate, betas=config.betas, fused=True)
    if config.kind == "adafactor":
        return Adafactor(settings, lr=config.learning_rate, betas=config.betas)

    from timm.optim.muon import Muon

    return Muon(
        settings,
        lr=config.learning_rate,
        betas=config.betas,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fallback_lr_scale=config.adam_ratio,
        weight_decay=config.weight_decay,
    )
