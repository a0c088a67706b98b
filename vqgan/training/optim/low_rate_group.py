"""One network with two learning rates: a lower one for a pretrained BERT than for randomly initialized parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqgan.training.optim.loss_scale import LossScale
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig, gradients_of
from vqgan.training.parallel.sharded_tensors import whole


class LowRateGroup:
    """Two optimizers of one kind: `gentle` modules learn at `ratio` times the rate of the rest of `network`.

    Each clips the gradients of its own part. If any gradient is not finite, neither takes a step.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        network: nn.Module,
        gentle: Sequence[nn.Module],
        ratio: float,
        steps: int,
        scales: Mapping[int, float] | None = None,
        *,
        fp16: bool = False,
    ) -> None:
        self._loss_scale = LossScale(fp16)
        gently = config.model_copy(update={"learning_rate": config.learning_rate * ratio})
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._gentle = Optimizer(gently, nn.ModuleList(gentle), steps, scales=scales)
        self._rest = Optimizer(config, nn.ModuleList(_without(network, gentle)), steps, scales=scales)

    def step(self, step: int) -> dict[str, Tensor]:
        """As `Optimizer.step`; the rate that is returned is that of the rest."""
        self._loss_scale.unscale(gradients_of(self._parameters))
        norm = whole(nn.utils.get_total_norm(gradients_of(self._parameters)))
        is_finite = bool(norm.isfinite())
        scaling = self._loss_scale.settle(is_finite)
        if not is_finite:
            for parameter in self._parameters:
                parameter.grad = None
            return {"skipped": torch.tensor(1.0)} | scaling
        self._gentle.apply(step, self._gentle.gradient_norm())
        metrics = self._rest.apply(step, self._rest.gradient_norm())
        return metrics | {"gradient_norm": norm.detach()} | scaling

    @property
    def scale(self) -> float:
        """As `Optimizer.scale`; one for both."""
        return self._loss_scale.value

    def state_dict(self) -> dict[str, Any]:
        state = {"gentle": self._gentle.state_dict(), "rest": self._rest.state_dict()}
        return state | {"loss_scale": self._loss_scale.state_dict()} if self._loss_scale.fp16 else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._loss_scale.fp16 and "loss_scale" in state:
            self._loss_scale.load_state_dict(state["loss_scale"])
        self._gentle.load_state_dict(state["gentle"])
        self._rest.load_state_dict(state["rest"])


def _without(network: nn.Module, gentle: Sequence[nn.Module]) -> list[nn.Module]:
    """Returns the largest modules of `network` that have none of the gentle ones in them."""
    if any(network is module for module in gentle):
        return []
    if not any(inner is module for inner in network.modules() for module in gentle):
        return [network]
    if own := [name for name, _ in network.named_parameters(recurse=False)]:
        raise ValueError(f"{own[0]} is a parameter beside a gentle module, in no module of its own; put it into one")
    return [module for child in network.children() for module in _without(child, gentle)]
