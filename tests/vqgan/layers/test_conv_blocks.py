"""The blocks of the CNN VQGAN against their formulas; the whole network stands in the tests of taming's weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.layers.conv_blocks import AttentionBlock, ResidualBlock, conv_head, downsample, group_norm, upsample

pytestmark = pytest.mark.threads


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolved(layer: nn.Module, x: Tensor, **settings: int) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x, layer.weight, layer.bias, **settings)


def normalized(x: Tensor, groups: int) -> Tensor:
    """Group norm as it is at the start, with taming's epsilon."""
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    deviation = (grouped.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return ((grouped - grouped.mean(-1, keepdim=True)) / deviation).view(x.shape)


def test_flat_groups_are_divided_by_tamings_epsilon() -> None:
    x = 1e-3 * random(2, 8, 3, 3)
    torch.testing.assert_close(group_norm(8, 4)(x), normalized(x, 4))


def test_half_the_resolution_is_padded_on_the_right_and_at_the_bottom() -> None:
    layer, x = downsample(3), random(1, 3, 6, 8)
    padded = torch.zeros(1, 3, 7, 9)
    padded[:, :, :6, :8] = x
    torch.testing.assert_close(layer(x), convolved(layer[1], padded, stride=2))
    assert layer(x).shape == (1, 3, 3, 4)


def test_twice_the_resolution_repeats_before_it_convolves() -> None:
    layer, x = upsample(3), random(1, 3, 4, 5)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(layer(x), convolved(layer[1], repeated, padding=1))


@pytest.mark.parametrize("channels_out", [8, 12])
def test_a_residual_block_is_its_formula(channels_out: int) -> None:
    block, x = ResidualBlock(8, channels_out, groups=4, dropout=0.5).eval(), random(2, 8, 5, 6)
    y = convolved(block.conv1, F.silu(normalized(x, 4)), padding=1)
    y = convolved(block.conv2, F.silu(normalized(y, 4)), padding=1)
    carried = x if channels_out == 8 else convolved(block.shortcut, x)
    torch.testing.assert_close(block(x), carried + y, rtol=1e-4, atol=1e-5)


def test_dropout_lies_between_the_second_norm_and_the_second_convolution() -> None:
    block, x = ResidualBlock(8, 8, groups=4, dropout=0.5), random(2, 8, 5, 6)
    seen: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    block(x)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_attention_is_its_formula() -> None:
    block, x = AttentionBlock(8, groups=4), random(2, 8, 3, 5)
    y = normalized(x, 4)
    q, k, v = (convolved(layer, y).flatten(2) for layer in (block.query, block.key, block.value))  # (B, C, h w)
    weights = (torch.einsum("bcq,bck->bqk", q, k) / 8**0.5).softmax(-1)
    attended = torch.einsum("bqk,bck->bcq", weights, v).view(x.shape)
    torch.testing.assert_close(block(x), x + convolved(block.out, attended), rtol=1e-4, atol=1e-5)


def test_a_head_is_norm_swish_convolution() -> None:
    head, x = conv_head(8, 3, groups=2), random(2, 8, 4, 4)
    torch.testing.assert_close(head(x), convolved(head[2], F.silu(normalized(x, 2)), padding=1), rtol=1e-4, atol=1e-5)
