"""The loss scale follows torch.amp.GradScaler's rules, and fp16 leaves no update out that fp32 would make."""

import pytest
import torch
from torch import Tensor, nn

from vqgan.training.monitor.nan_guard import separate_skips
from vqgan.training.optim.loss_scale import LOWEST, UPDATES_BETWEEN_DOUBLINGS, LossScale
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig

pytestmark = pytest.mark.threads


def test_the_scale_is_that_of_torch_for_the_same_gradients() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    reference = torch.amp.GradScaler("cpu", growth_interval=UPDATES_BETWEEN_DOUBLINGS)
    scale = LossScale()
    for update in range(2 * UPDATES_BETWEEN_DOUBLINGS + 20):
        is_finite = update not in (3, 4, 17)
        weight.grad = torch.tensor([1.0 if is_finite else float("inf")])
        reference.scale(torch.zeros(1))
        reference.step(optimizer)
        reference.update()
        scale.adapt(is_finite)
        if update % 97 == 0 or not is_finite:
            assert scale.value == reference.get_scale(), update
    assert scale.value == reference.get_scale() == 2.0**15


def test_the_scale_has_a_floor_below_which_an_overflow_is_the_networks_own() -> None:
    scale = LossScale()
    for _ in range(40):
        scale.adapt(is_finite=False)
    assert scale.value == LOWEST
    assert scale.is_lowest


def test_scaled_steps_are_those_without_a_scale_and_an_overflow_changes_nothing() -> None:
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    config = OptimizerConfig(clip_norm=0.1, learning_rate=1e-2)
    plain, scaled = Optimizer(config, nets[0], 10), Optimizer(config, nets[1], 10, fp16=True)
    for net, optimizer in zip(nets, (plain, scaled), strict=True):
        (net(torch.ones(4, 3)).square().sum() * optimizer.scale).backward()
        metrics = optimizer.step(3)
        assert metrics["gradient_norm"] > 0.1
        assert not metrics["skipped"]
    assert torch.equal(nets[0].weight, nets[1].weight)

    nets[1].weight.grad = torch.full((2, 3), float("inf"))
    metrics = scaled.step(4)
    assert (metrics["skipped"], metrics["overflowed"], scaled.scale) == (1, 1, 2.0**15)
    assert torch.equal(nets[0].weight, nets[1].weight)

    fresh = Optimizer(config, nets[1], 10, fp16=True)
    fresh.load_state_dict(scaled.state_dict())
    assert fresh.scale == 2.0**15
    fresh.load_state_dict(plain.state_dict())  # of a run in bf16: the scale is then found anew
    plain.load_state_dict(scaled.state_dict())
    assert plain.scale == 1.0


@pytest.mark.parametrize(
    ("flags", "skipped", "step_metrics"),
    [
        ({"skipped": 1.0, "overflowed": 1.0}, [], {"overflowed": 1.0}),
        ({"skipped": 1.0, "overflowed": 0.0}, ["model"], {"overflowed": 0.0, "loss": 2.0}),
        ({"skipped": 0.0, "overflowed": 0.0}, [], {"overflowed": 0.0, "loss": 2.0}),
        (
            {"skipped": 1.0, "overflowed": 0.0, "discriminator_skipped": 1.0, "discriminator_overflowed": 1.0},
            ["model"],
            {"overflowed": 0.0, "discriminator_overflowed": 1.0},
        ),
    ],
)
def test_an_overflow_of_the_scale_is_not_counted_as_a_lost_gradient(
    flags: dict[str, float], skipped: list[str], step_metrics: dict[str, float]
) -> None:
    metrics: dict[str, Tensor] = {name: torch.tensor(value) for name, value in (flags | {"loss": 2.0}).items()}
    kept, lost = separate_skips(metrics)
    assert lost == skipped
    assert {name: value.item() for name, value in kept.items()} == step_metrics
