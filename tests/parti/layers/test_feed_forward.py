"""Feed-forwards by kind: formulas, sizes, and the options that choose them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parti.layers.feed_forward import SwiGLU, feed_forward
from parti.layers.options import TransformerOptions

pytestmark = pytest.mark.threads


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_default_is_partis_and_gelu_is_dalles() -> None:
    x = numbers(2, 5, 8)
    for module, activation in ((feed_forward(8, 32), F.relu), (feed_forward(8, 32, "gelu"), F.gelu)):
        assert set(module.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}, "keys of saved models"
        first, _, second = module.children()
        torch.testing.assert_close(module(x), second(activation(first(x))))


def test_swiglu_is_the_papers_formula() -> None:
    module = SwiGLU(8, 24)
    x = numbers(2, 5, 8)
    (gate, value), (gate_bias, value_bias) = module.gate_and_value.weight.chunk(2), module.gate_and_value.bias.chunk(2)
    gated = x @ gate.T + gate_bias
    expected = (gated * gated.sigmoid() * (x @ value.T + value_bias)) @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("width", "mlp_width"), [(512, 2048), (1024, 4096), (2048, 8192), (4096, 16_384), (3968, 15_872)]
)
def test_swiglu_is_as_large_as_the_others(width: int, mlp_width: int) -> None:
    with torch.device("meta"):
        gated, plain = feed_forward(width, mlp_width, "swiglu"), feed_forward(width, mlp_width)
    hidden = gated.out.in_features
    assert hidden % 8 == 0
    assert 0 <= 3 * hidden - 2 * mlp_width < 24, "two thirds, rounded up to the next multiple of 8"
    assert size(gated) == 3 * width * hidden + 2 * hidden + width
    assert size(gated) == pytest.approx(size(plain), rel=4e-3)


def test_a_width_of_two_thirds_that_needs_no_rounding_is_kept() -> None:
    assert SwiGLU(8, 24).out.in_features == 16
    assert SwiGLU(8, 25).out.in_features == 24


def test_options_are_off_by_default() -> None:
    options = TransformerOptions()
    assert (options.norm, options.feed_forward, options.qk_norm, options.rotary) == ("layer", None, False, False)


def test_rotary_heads_are_checked_where_rotary_is_chosen() -> None:
    TransformerOptions().check_heads(width=18, heads=3)
    TransformerOptions(rotary=True).check_heads(width=64, heads=4)
    with pytest.raises(ValueError, match="width / heads is a multiple of 4, received 6"):
        TransformerOptions(rotary=True).check_heads(width=18, heads=3)
