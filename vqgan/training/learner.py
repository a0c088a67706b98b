"""The learner: everything that the objectives share around their losses.

An objective says what is minimized on a micro-batch. Mixed precision, gradient accumulation, compiled layers, the
processes of the launch (DDP, or FSDP2 as an accelerate config asks for it), the optimizer with its loss scale, the
step that is left out where a gradient is not finite, and the averaged weights are one thing, the same for all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.parallel import DistributedDataParallel

from vqgan.config.schema import Config
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.low_rate_group import LowRateGroup
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.optim.parameter_groups import freeze, rate_scales
from vqgan.training.optim.precision import DTYPES, Precision, autocast
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share, weight_of_each
from vqgan.training.parallel.sharding import Layers, is_sharded, replicated_parameters, requested_sharding
from vqgan.training.task import Stateful

NetworkT = TypeVar("NetworkT", bound=nn.Module)
PartT = TypeVar("PartT")
LossAndMetrics = tuple[Float[Tensor, ""], Mapping[str, Tensor]]
"""What is minimized on a micro-batch, and the scalars to log: of both, a step has the mean over its micro-batches."""


class LearnerConfig(Config, may_change=("precision", "compile_layers")):
    """Training settings of any network."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """The network's optimizer."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated, previewed and saved."""
    precision: Precision = "bf16"
    """Arithmetic of the networks in training; logits, losses, look-ups and weights are fp32 in any case. fp16, for GPUs
    without bf16, scales the loss of each player, or with decoder_only the gradients of each block, as DALL-E does."""
    compile_layers: bool = False
    """Compile each repeated layer of the network (torch.compile): minutes at the start, then faster steps on a GPU."""


class LowRate(NamedTuple):
    """Modules of a network that learn at `ratio` times the rate of the rest."""

    modules: Sequence[nn.Module]
    ratio: float


def repeated_layers(network: Any) -> Sequence[nn.Module]:
    """The layers of all stacks of a network, as it names them itself: units to be compiled, or divided, one by one."""
    layers: Sequence[nn.Module] = network.repeated_layers()
    return layers


class Player:
    """A network in training with its optimizer: `parallel` is what its forward passes go through.

    `constrain` is called after each update, to keep weights in bounds.
    """

    def __init__(
        self,
        precision: Precision,
        parallel: nn.Module,
        optimizer: Optimizer | LowRateGroup,
        accelerator: Accelerator,
        constrain: Callable[[], None] | None = None,
    ) -> None:
        self.precision = precision
        self.parallel = parallel
        self.optimizer = optimizer
        self.accelerator = accelerator
        self._constrain = constrain

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The network's output in training, in its precision."""
        with self.autocast():
            return self.parallel(*inputs, **named)

    def autocast(self) -> torch.autocast:
        """Returns a new autocast context of its precision."""
        return autocast(self.accelerator.device, self.precision)

    @property
    def scale(self) -> float:
        """What the loss of this step is multiplied by in fp16; gradients that are taken on the way are to be too."""
        return self.optimizer.scale

    def backward(self, parts: Sequence[PartT], compute_loss: Callable[[PartT], LossAndMetrics]) -> dict[str, Tensor]:
        """The gradients of the mean over micro-batches and processes; returns this process's means of the metrics."""
        means: dict[str, Tensor] = {}
        share = 1 / len(parts)
        for part in accumulate(self.parallel, parts):
            loss, metrics = compute_loss(part)
            self.accelerator.backward(loss * (share * self.scale))
            add_share(means, metrics, share)
        return means

    def update(self, step: int) -> dict[str, Tensor]:
        """The optimizer's step; none where a gradient is not finite."""
        metrics = self.optimizer.step(step)
        if self._constrain is not None:
            with torch.no_grad():
                self._constrain()
        return metrics


class Opponent(Player):
    """The discriminator of a GAN: its own optimizer, no average.

    Whole on every process, and never compiled: penalties on gradients are differentiated twice.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        precision: Precision,
        network: nn.Module,
        accelerator: Accelerator,
        steps: int,
        constrain: Callable[[], None] | None = None,
    ) -> None:
        scales = rate_scales(network, [], config.learning_rate_scale, config.layer_decay)
        freeze(network, scales)
        network = network.to(accelerator.device)
        if not is_sharded(accelerator):
            parallel: nn.Module = accelerator.prepare_model(network)
        else:
            parallel = DistributedDataParallel(network)
        optimizer = Optimizer(config, network, steps, fp16=precision == "fp16", scales=scales)
        super().__init__(precision, parallel, optimizer, accelerator, constrain)


class Learner(Player, Generic[NetworkT]):
    """`network` in training, on the accelerator's device, with its average (`ema`) and its `optimizer`.

    `layers` are the network's units; `averaged`, the part of it that is averaged and shipped: all of it. `low_rate`
    modules learn more slowly. Where the network scales its own gradients in fp16, `scales_loss` is false.
    """

    def __init__(
        self,
        config: LearnerConfig,
        network: NetworkT,
        accelerator: Accelerator,
        steps: int,
        *,
        layers: Layers[Any] = repeated_layers,
        averaged: nn.Module | None = None,
        low_rate: LowRate | None = None,
        constrain: Callable[[], None] | None = None,
        scales_loss: bool = True,
    ) -> None:
        self.network = network
        self.config = config
        self.steps = steps
        self._averaged: Any = network if averaged is None else averaged
        self.ema: EMA[Any] = EMA(config.ema, self._averaged)
        freeze(network, self._rate_scales(layers))
        if config.compile_layers:
            # One at a time, as layers of one shape then share what was compiled; names of weights stay as they are.
            for layer in layers(network):
                layer.compile()
        sharding = requested_sharding(accelerator)
        self._is_sharded = sharding is not None
        parallel: nn.Module = network
        if sharding is None:
            parallel = accelerator.prepare_model(network.to(accelerator.device))
            # Every process has the first one's weights by now.
            self.ema.follow(self._averaged)
        else:
            sharding.shard(network, layers(network), DTYPES[config.precision])
            self.ema.shard(self._averaged, sharding, layers)
        fp16 = config.precision == "fp16" and scales_loss
        scales = self._rate_scales(layers)  # anew: weights that are divided are other parameters
        optimizer: Optimizer | LowRateGroup = (
            Optimizer(config.optimizer, network, steps, fp16=fp16, scales=scales)
            if low_rate is None
            else LowRateGroup(config.optimizer, network, low_rate.modules, low_rate.ratio, steps, scales, fp16=fp16)
        )
        super().__init__(config.precision, parallel, optimizer, accelerator, constrain)

    def update(self, step: int) -> dict[str, Tensor]:
        """The optimizer's step, and the average's behind it; neither where a gradient is not finite."""
        with self._average_replicated():
            metrics = super().update(step)
            if not metrics["skipped"]:  # in the host's memory
                self.ema.update(self._averaged, step)
        return metrics

    def _rate_scales(self, layers: Layers[Any]) -> dict[int, float]:
        optimizer = self.config.optimizer
        if not optimizer.learning_rate_scale and optimizer.layer_decay == 1.0:
            return {}
        return rate_scales(self.network, layers(self.network), optimizer.learning_rate_scale, optimizer.layer_decay)

    @contextmanager
    def _average_replicated(self) -> Iterator[None]:
        """Inside, sharded weights and those that are whole on every process may be updated together."""
        if not self._is_sharded:
            yield
            return
        for parameter in replicated_parameters(self.network):
            if parameter.grad is not None:
                parameter.grad = torch.as_tensor(self.accelerator.reduce(parameter.grad, reduction="mean"))
        with implicit_replication():
            yield

    def weight_of_each(self, counts: Sequence[Tensor]) -> Tensor:
        """See `vqgan.training.parallel.gradient_accumulation.weight_of_each`."""
        return weight_of_each(self.accelerator, counts)

    def stateful(self, name: str) -> dict[str, Stateful]:
        """What a resumed run needs; `name` is that of the network in checkpoints."""
        return {name: self.network, "ema": self.ema, "optimizer": self.optimizer}
