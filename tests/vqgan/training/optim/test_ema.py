"""The averaged weights, against the recurrence written out."""

import pytest
import torch
from torch import nn

from vqgan.training.optim.ema import EMA, EMAConfig

pytestmark = pytest.mark.threads


def network(value: float = 0.0) -> nn.Linear:
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def follow(decay: float, steps: int, power: float = 0.8) -> list[float]:
    """The average after each step of a weight that is 1, 2, 3, ... after steps 0, 1, 2, ..."""
    trained = network()
    ema = EMA(EMAConfig(decay=decay, warmup_power=power), trained)
    averages = []
    for step in range(steps):
        nn.init.constant_(trained.weight, step + 1.0)
        ema.update(trained, step)
        averages.append(ema.module.weight[0, 0].item())
    return averages


@pytest.mark.parametrize(("decay", "power"), [(0.9, 0.8), (0.5, 0.8), (0.99, 0.5)])
def test_the_recurrence_with_its_warm_up(decay: float, power: float) -> None:
    average, expected, decays = 0.0, [], []
    for step in range(30):
        used = min(decay, 1 - max(1, step) ** -power)  # timm's warm-up lags one step
        assert used <= 1 - (1 + step) ** -power
        average = used * average + (1 - used) * (step + 1)
        expected.append(average)
        decays.append(used)
    assert follow(decay, 30, power) == pytest.approx(expected, rel=1e-5)
    assert decays[:2] == [0, 0], "the initial weights are forgotten at once"
    assert decays[-1] == (decay if decay < 0.99 else pytest.approx(1 - 29**-0.5))


def test_without_decay_it_is_the_network() -> None:
    assert follow(0.0, 5) == [1, 2, 3, 4, 5]


def test_buffers_are_averaged_and_integers_copied() -> None:
    trained = nn.BatchNorm1d(2)
    ema = EMA(EMAConfig(decay=0.9), trained)
    trained.running_mean.fill_(4.0)  # type: ignore[union-attr]
    trained.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    ema.update(trained, step=100)
    assert ema.module.running_mean.tolist() == pytest.approx([0.4, 0.4])  # type: ignore[union-attr]
    assert ema.module.num_batches_tracked == 7


def test_the_copy_takes_no_gradient_and_is_in_evaluation_mode() -> None:
    trained = network()
    ema = EMA(EMAConfig(), trained)
    assert ema.module is not trained
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert not ema.module.training
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_state_dict_has_the_networks_keys_and_restores() -> None:
    ema, other = EMA(EMAConfig(decay=0.9), network(2.0)), EMA(EMAConfig(decay=0.9), network())
    assert ema.state_dict().keys() == network().state_dict().keys()
    other.load_state_dict(ema.state_dict())
    trained = network(5.0)
    ema.update(trained, 50)
    other.update(trained, 50)
    assert torch.equal(ema.module.weight, other.module.weight)
