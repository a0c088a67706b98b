"""One network with two learning rates: a pretrained BERT wants a gentler one than what starts at random beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig


class LowRateGroup:
    """Two optimizers of one kind: `gentle` modules learn at `ratio` times the rate of the rest of `network`.

    Each clips the gradients of its own part. Where any gradient is not finite neither takes a step.
    """

    def __init__(
        self, config: OptimizerConfig, network: nn.Module, gentle: Sequence[nn.Module], ratio: float, steps: int
    ) -> None:
        gently = config.model_copy(update={"learning_rate": config.learning_rate * ratio})
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._gentle = Optimizer(gently, nn.ModuleList(gentle), steps)
        self._rest = Optimizer(config, nn.ModuleList(_without(network, gentle)), steps)

    def step(self, step: int) -> dict[str, Tensor]:
        """As `Optimizer.step`; the rate that is returned is that of the rest."""
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if not norm.isfinite():
            for parameter in self._parameters:
                parameter.grad = None
            return {"skipped": torch.tensor(1.0)}
        self._gentle.step(step)
        return self._rest.step(step) | {"gradient_norm": norm.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {"gentle": self._gentle.state_dict(), "rest": self._rest.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gentle.load_state_dict(state["gentle"])
        self._rest.load_state_dict(state["rest"])


def _without(network: nn.Module, gentle: Sequence[nn.Module]) -> list[nn.Module]:
    """The largest modules of `network` that have none of the gentle ones in them."""
    if any(network is module for module in gentle):
        return []
    if not any(inner is module for inner in network.modules() for module in gentle):
        return [network]
    if own := [name for name, _ in network.named_parameters(recurse=False)]:
        raise ValueError(f"{own[0]} is a parameter beside a gentle module, in no module of its own; put it into one")
    return [module for child in network.children() for module in _without(child, gentle)]
