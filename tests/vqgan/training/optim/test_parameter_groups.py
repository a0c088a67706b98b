"""Parts of a network at other rates, and frozen parts."""

import pytest
import torch
from torch import nn

from vqgan.config.schema import ConfigError, validate
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.optim.parameter_groups import freeze, rate_scales


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def by_name(net: Net, scales: dict[int, float]) -> dict[str, float]:
    return {name: scales.get(id(parameter), 1.0) for name, parameter in net.named_parameters()}


def test_layer_decay_goes_down_from_the_last_layer() -> None:
    net = Net()
    found = by_name(net, rate_scales(net, list(net.blocks), {}, 0.5))
    assert {
        name: found[f"{name}.weight"] for name in ("blocks.2", "blocks.1", "blocks.0", "embedding", "head", "norm")
    } == {
        "blocks.2": 1.0,
        "blocks.1": 0.5,
        "blocks.0": 0.25,
        "embedding": 0.125,
        "head": 1.0,
        "norm": 1.0,
    }


def test_the_longest_beginning_counts_and_only_whole_names() -> None:
    net = Net()
    found = by_name(net, rate_scales(net, [], {"blocks": 0.1, "blocks.1": 0.0}, 1.0))
    assert (found["blocks.0.weight"], found["blocks.1.bias"], found["head.weight"]) == (0.1, 0.0, 1.0)
    with pytest.raises(ConfigError, match=r"names 'block', with which .*; known: blocks, embedding, head, norm"):
        rate_scales(net, [], {"block": 0.1}, 1.0)
    with pytest.raises(ConfigError, match="repeats no layers"):
        rate_scales(net, [], {}, 0.5)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_rates_and_frozen_parts_hold_in_every_optimizer(kind: str) -> None:
    torch.manual_seed(0)
    net = Net()
    settings = {"kind": kind, "learning_rate": 1e-2, "weight_decay": 0.0, "learning_rate_scale": {"head": 0.1}}
    config = validate(OptimizerConfig, settings | {"schedule": {"shape": "constant"}}, "test")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = Net()
    twin.load_state_dict(before)
    full = validate(OptimizerConfig, settings | {"schedule": {"shape": "constant"}, "learning_rate_scale": {}}, "test")
    for network, chosen, frozen in ((net, config, {"blocks.0": 0.0}), (twin, full, {})):
        scales = rate_scales(network, [], {**chosen.learning_rate_scale, **frozen}, 1.0)
        assert freeze(network, scales) == (20 if frozen else 0)
        optimizer = Optimizer(chosen, network, 10, scales=scales)
        network(torch.tensor([0, 1, 2])).square().sum().backward()
        optimizer.step(0)
    moved = {name: (value - before[name]).abs().max() for name, value in net.state_dict().items()}
    moved_fully = {name: (value - before[name]).abs().max() for name, value in twin.state_dict().items()}
    assert moved["blocks.0.weight"] == 0 < moved_fully["blocks.0.weight"]
    torch.testing.assert_close(moved["head.weight"], moved_fully["head.weight"] * 0.1, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(moved["blocks.2.weight"], moved_fully["blocks.2.weight"])
