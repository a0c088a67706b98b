"""Exponential moving average of a network's weights (timm's, with a warm-up so that short runs profit too)."""

from typing import Any, Generic, TypeVar

from pydantic import Field
from torch import nn

from vqgan.config import Config
from vqgan.torchvision_ops import declare_missing_torchvision_ops


class EMAConfig(Config):
    """The averaged copy that is evaluated and shipped."""

    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the average that each step keeps, once warm. 0: the copy is the trained network itself."""
    warmup_power: float = Field(0.8, gt=0)
    """The decay at step t is at most 1 - (1 + t) ** -warmup_power."""


NetworkT = TypeVar("NetworkT", bound=nn.Module)


class EMA(Generic[NetworkT]):
    """`module` holds the averaged network; `update` follows the trained one."""

    def __init__(self, config: EMAConfig, network: NetworkT) -> None:
        declare_missing_torchvision_ops()
        from timm.utils.model_ema import ModelEmaV3

        self._ema = ModelEmaV3(
            network, decay=config.decay, use_warmup=True, warmup_power=config.warmup_power, foreach=True
        )
        self.module: NetworkT = self._ema.module
        self.module.requires_grad_(False)

    def update(self, network: NetworkT, step: int) -> None:
        """Move the average towards `network` after step `step` (0-based)."""
        self._ema.update(network, step=step)

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state)
