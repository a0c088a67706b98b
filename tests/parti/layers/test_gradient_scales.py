"""Gradient scales: small gradients survive fp16, an overflow stays in its branch, the paper's rules to the letter."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parti.layers.gradient_scales import Branch, BranchEnds, GradientScales

pytestmark = pytest.mark.threads

TINY = 1e-8
"""Factor on the loss: the branches' gradients are then far below the smallest number of fp16, 6e-8."""


class Block(nn.Module):
    """x + f(norm(x)): one residual branch."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.ends = BranchEnds()
        self.branch = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ends.leave(self.branch(self.ends.enter(x)))


class Net(nn.Module):
    """An embedding, blocks, and a head outside of any branch."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(8, 4)

    def forward(self, recompute: bool = False) -> Tensor:
        x: Tensor = self.embedding
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        assert x.dtype == torch.float32, "the residual path"
        with torch.autocast("cpu", enabled=False):
            return self.head(x).square().mean()

    def branches(self) -> list[Branch]:
        return [Branch(block.ends, list(block.branch.parameters())) for block in self.blocks]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def backward(net: Net, fp16: bool, factor: float = TINY, recompute: bool = False) -> None:
    with torch.autocast("cpu", torch.float16, enabled=fp16):
        loss = net(recompute)
    (loss * factor).backward()


def gradients(net: Net) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}


def set_scales(scales: GradientScales, values: list[float]) -> None:
    scales.load_state_dict(scales.state_dict() | {"scales": values})


def assert_equal_up_to_fp16(received: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert received.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (received[name] - gradient).norm() < 5e-3 * gradient.norm(), name


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_that_vanish_in_fp16_are_those_of_fp32_with_scales(net: Net, recompute: bool) -> None:
    exact, plain = copy.deepcopy(net), copy.deepcopy(net)
    backward(exact, fp16=False)
    backward(plain, fp16=True)
    vanished = [name for name, gradient in gradients(plain).items() if not gradient.any()]
    assert {name for name in vanished if name.endswith("3.weight")} == {f"blocks.{i}.branch.3.weight" for i in range(3)}

    scales = GradientScales(net.branches())
    set_scales(scales, [2.0**20, 2.0**21, 2.0**22])
    backward(net, fp16=True, recompute=recompute)
    scaled = gradients(net)["blocks.0.branch.3.weight"].clone()
    scales.unscale()
    torch.testing.assert_close(gradients(net)["blocks.0.branch.3.weight"], scaled / 2**20)
    assert_equal_up_to_fp16(gradients(net), gradients(exact))


def test_accumulated_parts_of_a_batch_are_unscaled_once(net: Net) -> None:
    exact = copy.deepcopy(net)
    scales = GradientScales(net.branches(), workers=2)
    set_scales(scales, [2.0**21, 2.0**22, 2.0**23])
    for _ in range(2):
        backward(exact, fp16=False, factor=TINY / 2)
        backward(net, fp16=True, factor=TINY / 2)
    scales.unscale()
    assert_equal_up_to_fp16(gradients(net), gradients(exact))


def test_an_overflow_stays_in_its_branch(net: Net) -> None:
    """As if the branch had not been there: the others' gradients are those without a way back through it."""
    without = copy.deepcopy(net)
    middle = without.blocks[1]
    middle.forward = lambda x: x + middle.branch(x.detach())
    backward(without, fp16=False, factor=1.0)

    scales = GradientScales(net.branches())
    set_scales(scales, [1024.0, 2.0**24, 1024.0])
    backward(net, fp16=True, factor=1.0)
    metrics = scales.unscale()
    assert metrics["branches_left_out"].item() == pytest.approx(1 / 3)
    assert metrics["least_gradient_scale"].item() == pytest.approx(1024 * 2**0.001)
    expected = {name: value for name, value in gradients(without).items() if not name.startswith("blocks.1")}
    assert_equal_up_to_fp16(gradients(net), expected)
    assert scales.scales == pytest.approx([1024 * 2**0.001, 2**23.5, 1024 * 2**0.001])


def test_what_a_branch_hands_on_is_zero_where_it_is_not_finite() -> None:
    ends, x = BranchEnds(), torch.zeros(4, requires_grad=True)
    ends.scale = torch.tensor(8.0)
    ends.enter(x).backward(torch.tensor([math.inf, -math.inf, math.nan, 4.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0, 0.5]


def test_a_branch_that_is_left_out_keeps_its_weights_and_moments(net: Net) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    scales = GradientScales(net.branches())
    backward(net, fp16=True, factor=1e-3)
    scales.unscale()
    optimizer.step()
    optimizer.zero_grad()

    set_scales(scales, [1024.0, 2.0**24, 1024.0])
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    moment = optimizer.state[net.blocks[1].branch[1].weight]["exp_avg"].clone()
    backward(net, fp16=True, factor=1.0)
    scales.unscale()
    optimizer.step()
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name]) == name.startswith("blocks.1"), name
    assert torch.equal(optimizer.state[net.blocks[1].branch[1].weight]["exp_avg"], moment)


def test_the_rules_of_the_paper(net: Net) -> None:
    scales = GradientScales(net.branches())
    assert scales.scales == [2**13] * 3
    scales.adapt([True, False, True])
    assert scales.scales == pytest.approx([2 ** (13 + 1 / 1000), 2**12.5, 2 ** (13 + 1 / 1000)])
    for _ in range(124):  # within 125 updates of a division there is no second one, and no growth either
        scales.adapt([True, False, True])
    assert scales.scales[1] == pytest.approx(2**12.5)
    scales.adapt([True, False, True])
    assert scales.scales[1] == pytest.approx(2**12)
    for _ in range(10):
        scales.adapt([True, True, True])
    assert scales.scales[1] == pytest.approx(2**12.01)
    assert scales.scales[0] == pytest.approx(2 ** (13 + 136 / 1000))


@pytest.mark.parametrize("workers", [1, 8])
def test_scales_stay_within_their_bounds(net: Net, workers: int) -> None:
    scales = GradientScales(net.branches(), workers)
    assert scales.scales[0] == workers * 2**13
    for _ in range(20 * 125):
        scales.adapt([True, False, True])
    assert scales.scales[1] == workers * 2**7
    set_scales(scales, [workers * 2**24 / 1.0001] * 3)
    scales.adapt([True, True, True])
    assert scales.scales == [workers * 2**24] * 3


def test_new_scales_reach_the_branches(net: Net) -> None:
    scales = GradientScales(net.branches())
    scales.adapt([True, False, True])
    seen = [block.ends.scale.item() for block in net.blocks]
    assert seen == pytest.approx(scales.scales)
    assert math.log2(seen[1]) == pytest.approx(12.5)


def test_a_resumed_run_goes_on_with_its_scales(net: Net) -> None:
    scales = GradientScales(net.branches())
    history = [[bool((update * 7 + branch) % 5) for branch in range(3)] for update in range(300)]
    for is_finite in history[:150]:
        scales.adapt(is_finite)
    resumed = GradientScales(copy.deepcopy(net).branches())
    resumed.load_state_dict(scales.state_dict())
    for is_finite in history[150:]:
        scales.adapt(is_finite)
        resumed.adapt(is_finite)
    assert resumed.state_dict() == scales.state_dict()
    with pytest.raises(ValueError, match="saved for 3 residual branches, the model has 2"):
        GradientScales(Net(depth=2).branches()).load_state_dict(scales.state_dict())


def test_without_scales_the_ends_do_nothing() -> None:
    ends, x = BranchEnds(), torch.randn(2, 8)
    assert ends.enter(x) is x
    assert ends.leave(x) is x
