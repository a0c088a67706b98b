"""Prepared generators: the full forward's logits up to the rounding of weights, and an original left as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parti.layers.options import TransformerOptions
from parti.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, Generator
from parti.sampling import packed_weights as module
from parti.sampling.generate import SamplingConfig, generate_codes
from parti.sampling.packed_weights import Bf16Linear, Int8Linear, PackedLinear, Precision, prepared
from tests.stepping import stepped
from tests.tiny import GENERATOR, TOKENS, codes, text_ids
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import load_weights, save_model_folder

pytestmark = pytest.mark.threads

BF16_LAYER = PackedLinear if torch.ops.mkldnn._is_mkldnn_bf16_supported() else Bf16Linear
"""How this processor reads bf16 weights: packed where it multiplies them (AVX-512)."""
NULL_IDS = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
MODERN = TransformerOptions(norm="rms", feed_forward="swiglu", qk_norm=True, rotary=True)
DALLE = DecoderOnlyConfig(depth=4, width=32, heads=2, mlp_width=64, kernel=3)
CONVOLUTION = GENERATOR.model_copy(update={"attention": "convolution", "kernel": 3})
MODELS: dict[str, Callable[[], Generator]] = {
    "full": lambda: EncoderDecoder(GENERATOR, TOKENS),
    "convolution": lambda: EncoderDecoder(CONVOLUTION, TOKENS),
    "modern": lambda: EncoderDecoder(GENERATOR.model_copy(update={"options": MODERN}), TOKENS),
    "dalle": lambda: DecoderOnly(DALLE, TOKENS),
    "full dalle": lambda: DecoderOnly(DALLE.model_copy(update={"attention": "full"}), TOKENS),
    "modern dalle": lambda: DecoderOnly(DALLE.model_copy(update={"options": MODERN}), TOKENS),
}
"""DALL-E's masks in four layers: row, column, row, convolution."""
LARGEST_ERROR = {"bf16": 0.015, "int8": 0.03}
"""Of all logits, relative: measured with these models and three seeds were 0.004 to 0.009 and 0.009 to 0.021. Scales
that are wrong by a tenth give 0.056 to 0.24."""


def model(name: str) -> Generator:
    """A model with opinions: what a fresh one has at zero is random. In evaluation mode."""
    torch.manual_seed(0)
    built = MODELS[name]().eval()
    for parameter_name, parameter in built.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    nn.init.normal_(built.image_head_layer().weight, std=0.5)
    return built


def int8_layers(generator: Generator) -> list[Int8Linear]:
    parts = [part for layer in generator.decode_layers() for part in layer.modules()]
    return [part for part in parts if isinstance(part, Int8Linear)]


@torch.no_grad()
def error(generator: Generator, expected: Tensor) -> float:
    """Of the stepped logits, relative to `expected`."""
    logits = stepped(generator, text_ids(5), codes(5))
    assert logits.dtype == torch.float32
    return ((logits - expected).norm() / expected.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_fp32_gives_the_logits_of_the_full_forward_at_every_position(name: str) -> None:
    original = model(name)
    expected = original(text_ids(5), codes(5)).image
    torch.testing.assert_close(stepped(prepared(original), text_ids(5), codes(5)), expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_fewer_bits_give_the_logits_up_to_their_rounding(name: str, precision: Precision) -> None:
    original = model(name)
    expected = original(text_ids(5), codes(5)).image
    fast = prepared(original, precision)
    # More than fp32's rounding, or nothing was rounded.
    assert 1e-3 < error(fast, expected) < LARGEST_ERROR[precision]
    for layer in int8_layers(fast):
        layer._scale = (layer._scale.float() * 1.1).bfloat16()
    if precision == "int8":
        assert error(fast, expected) > LARGEST_ERROR[precision]  # what the tolerance would notice


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_positions_may_be_tensors(name: str) -> None:
    fast = prepared(model(name))
    by_number, by_tensor = (stepped(fast, text_ids(3), codes(3), fixed_shapes=fixed) for fixed in (False, True))
    torch.testing.assert_close(by_tensor, by_number, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", PackedLinear), ("bf16", BF16_LAYER), ("int8", Int8Linear)])
@pytest.mark.parametrize("name", ["modern", "modern dalle"])
def test_every_layer_that_steps_read_is_replaced_and_nothing_else_is_copied(
    name: str, precision: Precision, kind: type[nn.Module]
) -> None:
    original = model(name)
    before = {key: (value.data_ptr(), value.clone()) for key, value in original.state_dict().items()}
    layers = [type(part) for part in original.modules()]
    fast = prepared(original, precision)

    stepped_parts = [part for layer in fast.decode_layers() for part in layer.modules()]
    assert nn.Linear not in map(type, stepped_parts)
    replaced = sum(type(part) is nn.Linear for layer in original.decode_layers() for part in layer.modules())
    assert sum(type(part) is kind for part in stepped_parts) == replaced
    name_of_head = next(key for key, part in original.named_modules() if part is original.image_head_layer())
    head = fast.get_submodule(name_of_head)
    assert isinstance(head, PackedLinear)
    assert head._dtype == torch.float32  # whatever the precision
    for key, value in fast.state_dict().items():
        assert value.data_ptr() == before[key][0], key
    # The original has its layers and its weights.
    assert [type(part) for part in original.modules()] == layers
    for key, value in original.state_dict().items():
        assert value.data_ptr() == before[key][0]
        assert torch.equal(value, before[key][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["full", "dalle"])
def test_the_original_trains_and_saves_after_drawing(name: str, precision: Precision, tmp_path: Path) -> None:
    generated, untouched = model(name).train(), model(name).train()
    generate_codes(generated, text_ids(2), NULL_IDS, [0, 1], SamplingConfig(precision=precision))
    for each in (generated, untouched):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        F.cross_entropy(each(text_ids(4), codes(4)).image.flatten(0, 1), codes(4).flatten()).backward()
        optimizer.step()
    for (key, first), second in zip(generated.state_dict().items(), untouched.state_dict().values(), strict=True):
        assert torch.equal(first, second), key
    save_model_folder(tmp_path, {}, generated.state_dict())
    again = model(name)
    load_weights(again, tmp_path)
    assert torch.equal(again(text_ids(2), codes(2)).image, generated.eval()(text_ids(2), codes(2)).image)


def test_drawing_follows_weights_that_have_changed() -> None:
    changing = model("full")
    before = generate_codes(changing, text_ids(2), NULL_IDS, [0, 1])
    with torch.no_grad():
        changing.image_head_layer().bias[7] += 100
    assert not (before == 7).all()
    assert (generate_codes(changing, text_ids(2), NULL_IDS, [0, 1]) == 7).all()


@pytest.mark.parametrize("width", [16, 24, 48, 63])
def test_int8_is_the_nearest_of_255_levels_of_each_output(width: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(width, 5)
    with torch.no_grad():
        linear.weight[3] = 0  # no scale of its own
    layer = Int8Linear(linear)
    by_hand = torch.zeros(5, width, dtype=torch.int8)
    scales = []
    for output, weights in enumerate(linear.weight.tolist()):
        scale = max(map(abs, weights)) / 127
        scales.append(scale)
        for place, weight in enumerate(weights):
            by_hand[output, place] = round(weight / scale) if scale else 0
    assert torch.equal(layer._weight[:, :width], by_hand)
    assert layer._weight.abs().max() == 127
    torch.testing.assert_close(layer._scale.float(), torch.tensor(scales), rtol=2**-8, atol=1e-37)

    x = torch.randn(20, 3, width)
    weight = by_hand.double() * layer._scale.double()[:, None]
    expected = x.bfloat16().double() @ weight.T + linear.bias.double()
    given = layer(x)
    assert given.shape == (20, 3, 5)
    assert given.dtype == torch.float32
    # What is left is one rounding of the product to bf16.
    torch.testing.assert_close(given.double(), expected, rtol=2**-8, atol=2**-8)
    assert torch.equal(given[..., 3], linear.bias[3].expand(20, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3,), (40,), (2, 3)])
def test_every_layer_takes_any_rows_with_and_without_a_bias(bias: bool, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 5, bias=bias), torch.randn(*rows, 24)
    expected = linear(x).detach()
    layers: dict[nn.Module, float] = {
        PackedLinear(linear, torch.float32): 1e-5,
        Int8Linear(linear): 0.03,
        Bf16Linear(linear): 0.02,
    }
    if BF16_LAYER is PackedLinear:
        layers[PackedLinear(linear, torch.bfloat16)] = 0.02
    for layer, tolerance in layers.items():
        torch.testing.assert_close(layer(x).float().detach(), expected, rtol=tolerance, atol=tolerance)
        assert (layer(x).dtype == torch.bfloat16) == isinstance(layer, Bf16Linear)


def test_int8_needs_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = model("full")
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "device", torch.device("cuda"))
        with pytest.raises(
            ConfigError, match="precision int8 has no fast product on this cuda device; use bf16 or fp32"
        ):
            prepared(original, "int8")
    monkeypatch.setattr(module, "_has_onednn", lambda: False)
    with pytest.raises(ConfigError, match="int8 has no fast product on this cpu device"):
        prepared(original, "int8")


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_without_onednn_plain_layers_serve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_onednn", lambda: False)
    original = model(name)
    expected = original(text_ids(5), codes(5)).image
    plain, half = prepared(original), prepared(original, "bf16")
    assert {type(part) for part in plain.modules()} == {type(part) for part in original.modules()}
    assert error(plain, expected) < 1e-5
    assert any(isinstance(part, Bf16Linear) for part in half.modules())
    assert 1e-3 < error(half, expected) < LARGEST_ERROR["bf16"]
    for precision in ("fp32", "bf16"):
        generated = generate_codes(original, text_ids(2), NULL_IDS, [0, 1], SamplingConfig(precision=precision))
        assert generated.shape == (2, 16)
