"""A network made ready for training: compiled where that is wanted, and spread over the processes of the launch."""

from typing import TypeVar

from accelerate import Accelerator
from torch import nn

from vqgan.training.optim.ema import EMA
from vqgan.training.optim.precision import DTYPES, Precision
from vqgan.training.parallel.sharding import Layers, requested_sharding

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def prepare(
    accelerator: Accelerator,
    network: NetworkT,
    ema: EMA[NetworkT],
    layers: Layers[NetworkT],
    precision: Precision,
    compiled: bool,
) -> nn.Module:
    """What the forward passes of training go through; `network` and `ema` are on the device from here on.

    Every process has the first one's weights then. With an FSDP2 accelerate config they are divided, in place.
    `compiled`: each layer by torch.compile, one at a time, as layers of one shape then share what was compiled; names
    of weights stay as they are.
    """
    if compiled:
        for layer in layers(network):
            layer.compile()
    sharding = requested_sharding(accelerator)
    if sharding is None:
        parallel: nn.Module = accelerator.prepare_model(network.to(accelerator.device))
        ema.follow(network)
        return parallel
    sharding.shard(network, layers(network), DTYPES[precision])
    ema.shard(network, sharding, layers)
    return network
