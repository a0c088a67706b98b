"""Exponential moving average of a network's weights (timm's, with a warm-up for short runs)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from pydantic import Field
from torch import nn

from vqgan.config.schema import Config
from vqgan.training.parallel.sharded_tensors import whole
from vqgan.training.parallel.sharding import Layers, Sharding, copy_parameters, meta_copy


class EMAConfig(Config, may_change=("decay", "warmup_power")):
    """The averaged copy that is evaluated and saved."""

    decay: float = Field(0.999, ge=0, lt=1)
    """Decay after the warm-up. 0: the copy equals the trained network."""
    warmup_power: float = Field(0.8, gt=0)
    """The decay at step t is at most 1 - (1 + t) ** -warmup_power."""


NetworkT = TypeVar("NetworkT", bound=nn.Module)


class EMA(Generic[NetworkT]):
    """`module` holds the averaged network; `update` follows the trained one."""

    def __init__(self, config: EMAConfig, network: NetworkT) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self._ema = ModelEmaV3(
            network, decay=config.decay, use_warmup=True, warmup_power=config.warmup_power, foreach=True
        )
        self.module: NetworkT = self._ema.module
        self.module.requires_grad_(False)
        self._hollow: NetworkT | None = None

    def update(self, network: NetworkT, step: int) -> None:
        """Updates the average with `network` after step `step` (0-based)."""
        self._ema.update(network, step=step)

    def follow(self, network: NetworkT) -> None:
        """Resets the average to the weights of `network`, on its device."""
        self.module.to(next(network.parameters()).device).load_state_dict(network.state_dict())

    def shard(self, network: NetworkT, sharding: Sharding, layers: Layers[NetworkT]) -> None:
        """Shards the average like `network`, and resets it to its weights."""
        self._hollow = meta_copy(self.module)
        sharding.shard(self.module, layers(self.module), None)
        copy_parameters(network, self.module)

    @contextmanager
    def gathered(self, device: torch.device, here: bool = True) -> Iterator[None]:
        """Inside, `module` is a whole network on `device` on each process that says `here`, if it is sharded at all.

        For what is not a forward pass: drawing, saving. All processes enter together; one weight after the other is
        brought together, so that only those that say `here` need memory for all of it.
        """
        if self._hollow is None:
            yield
            return
        sharded, weights = self.module, {}
        for name, weight in sharded.state_dict().items():
            full = whole(weight)
            if here:
                weights[name] = full.to(device)
        if here:
            self.module = copy.deepcopy(self._hollow)
            self.module.load_state_dict(weights, assign=True)
            self.module.to(device)
        try:
            yield
        finally:
            self.module = sharded

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state)
