"""Parts of a network that learn at other rates: by name, by depth, or not at all."""

from collections.abc import Mapping, Sequence

from torch import nn

from vqgan.config.schema import ConfigError


def rate_scales(
    network: nn.Module, layers: Sequence[nn.Module], by_name: Mapping[str, float], layer_decay: float
) -> dict[int, float]:
    """What multiplies the learning rate of each parameter, by its id; those at the full rate are left out.

    `by_name` has beginnings of dotted names (`encoder`, `decoder.blocks.0`); of several that fit, the longest counts.
    `layer_decay` d: the last of n layers learns at the full rate, the layer before it at d of that, and so on; what is
    registered before the first layer (embeddings) at d^n, what is registered after the last one (norms, heads) at the
    full rate (BEiT, arXiv 2106.08254, appendix).
    Raises ConfigError for a beginning that no parameter has, with names that exist.
    """
    if layer_decay != 1.0 and not layers:
        raise ConfigError(f"optimizer.layer_decay is {layer_decay}, but this network repeats no layers; set it to 1")
    names = [name for name, _ in network.named_parameters()]
    for beginning in by_name:
        if not any(_begins_with(name, beginning) for name in names):
            known = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise ConfigError(
                f"optimizer.learning_rate_scale names {beginning!r}, with which no weight's name begins; known: {known}"
            )
    owner = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer.parameters()}
    scales, begun = {}, 0
    for name, parameter in network.named_parameters():
        begun = max(begun, owner.get(id(parameter), -1) + 1)
        number = owner.get(id(parameter), begun - 1)
        scale = layer_decay ** (len(layers) - 1 - number) if layers else 1.0
        fitting = [beginning for beginning in by_name if _begins_with(name, beginning)]
        if fitting:
            scale *= by_name[max(fitting, key=len)]
        if scale != 1.0:
            scales[id(parameter)] = scale
    return scales


def freeze(network: nn.Module, scales: Mapping[int, float]) -> int:
    """Takes the gradients from the parameters whose rate is 0; returns how many weights that are."""
    frozen = [parameter for parameter in network.parameters() if scales.get(id(parameter)) == 0.0]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)


def _begins_with(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(f"{beginning}.")
