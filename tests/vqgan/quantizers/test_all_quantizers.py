"""What every quantizer promises, whatever the idea behind it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.config.schema import Config, ConfigError, load_config, validate
from vqgan.quantizers import QUANTIZERS, NearestConfig, NearestEMAConfig, Quantizer, QuantizerConfig, build_quantizer

pytestmark = pytest.mark.threads


class Owner(Config):
    """A section that has a quantizer."""

    quantizer: QuantizerConfig = NearestConfig()
    """From latents to codes."""


_SETTINGS: dict[str, dict[str, Any]] = {
    "nearest": {"kind": "nearest", "codebook_size": 50, "code_dim": 6},
    "nearest, plain": {"kind": "nearest", "codebook_size": 50, "code_dim": 6, "l2_normalize": False},
    "nearest_ema": {"kind": "nearest_ema", "codebook_size": 50, "code_dim": 6},
    "gumbel": {"kind": "gumbel", "codebook_size": 50, "latent_dim": 9, "code_dim": 5},
    "finite_scalar": {"kind": "finite_scalar", "levels": [5, 4, 3, 2]},
    "lookup_free": {"kind": "lookup_free", "bits": 6},
    "residual": {"kind": "residual", "codebook_size": 20, "code_dim": 6, "depth": 3},
    "residual, own": {"kind": "residual", "codebook_size": 20, "code_dim": 6, "depth": 3, "shared": False},
}
_KEYS = {
    "nearest": ["codebook"],
    "nearest, plain": ["codebook"],
    "nearest_ema": ["codebook", "sums", "counts"],
    "gumbel": ["codebook", "proj.weight", "proj.bias"],
    "finite_scalar": [],
    "lookup_free": [],
    "residual": ["books.0.codebook"],
    "residual, own": ["books.0.codebook", "books.1.codebook", "books.2.codebook"],
}


@pytest.fixture(params=_SETTINGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Quantizer:
    torch.manual_seed(0)
    config = validate(Owner, {"quantizer": _SETTINGS[name]}, "the test").quantizer
    return build_quantizer(config).eval()


def latents(model: Quantizer, batch: int = 3, tokens: int = 40) -> Tensor:
    return 2 * torch.randn(batch, tokens, model.latent_dim, generator=torch.Generator().manual_seed(1))


def test_every_quantizer_of_the_table_is_here() -> None:
    assert {settings["kind"] for settings in _SETTINGS.values()} == QUANTIZERS.keys()


def test_the_kind_is_nearest_where_none_is_given() -> None:
    assert load_config(Owner, None, ["--quantizer.code_dim", "3"]).quantizer == NearestConfig(code_dim=3)
    assert load_config(Owner, None, ["--quantizer.kind", "nearest_ema"]).quantizer == NearestEMAConfig()
    with pytest.raises(ConfigError, match=r"quantizer\.kind: 'gumbl' is not a kind; did you mean gumbel"):
        load_config(Owner, None, ["--quantizer.kind", "gumbl"])


def test_embed_gives_the_latents_of_forward_to_the_bit(model: Quantizer) -> None:
    x = latents(model)
    result = model(x)
    assert result.latents.shape == (3, 40, model.code_dim)
    assert result.codes.shape == (3, 40 * model.codes_per_latent)
    assert torch.equal(model.embed(result.codes), result.latents)
    assert torch.equal(model.encode(x), result.codes)
    assert result.codes.dtype == torch.int64
    assert result.codes.min() >= 0
    assert result.codes.max() < model.codebook_size
    assert result.codes.unique().numel() > 10, "or else the comparison would see one code"
    assert model.unquantized(x).shape == result.latents.shape


def test_the_loss_is_one_number_in_fp32(model: Quantizer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = model(latents(model).bfloat16().requires_grad_())
    assert result.loss.shape == ()
    assert result.loss.dtype == torch.float32
    assert all(value.shape == () and not value.requires_grad for value in result.stats.values())


def test_the_quantization_error_is_the_mean_squared_distance_to_what_was_not_rounded(
    name: str, model: Quantizer
) -> None:
    x = latents(model)
    result = model(x)
    if name == "gumbel":
        assert sorted(result.stats) == ["kl", "kl_weight", "temperature"]
        return
    error = (model.unquantized(x) - result.latents).square().mean()
    assert result.stats["quantization_error"].item() == pytest.approx(error.item(), rel=1e-5)


def test_autocast_changes_nothing(model: Quantizer) -> None:
    x = latents(model)
    plain = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast, codes, embedded, unquantized = model(x), model.encode(x), model.embed(plain.codes), model.unquantized(x)
    assert torch.equal(plain.codes, cast.codes)
    assert torch.equal(plain.codes, codes)
    assert torch.equal(plain.latents, cast.latents)
    assert torch.equal(plain.latents, embedded)
    assert torch.equal(plain.loss, cast.loss)
    assert torch.equal(unquantized, model.unquantized(x))
    assert {value.dtype for value in (plain.latents, plain.loss, embedded, unquantized)} == {torch.float32}


def test_lowered_latents_are_quantized_as_the_same_numbers_in_fp32(model: Quantizer) -> None:
    low = latents(model).bfloat16()
    result, expected = model(low), model(low.float())
    for one, other in zip(result[:3], expected[:3], strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(result.stats[key], value) for key, value in expected.stats.items())
    assert torch.equal(model.encode(low), expected.codes)
    assert torch.equal(model.unquantized(low), model.unquantized(low.float()))
    for one, other in zip(
        model.look_ups(low, expected.codes), model.look_ups(low.float(), expected.codes), strict=True
    ):
        assert torch.equal(one.latents.float(), other.latents)


@pytest.mark.parametrize("training", [True, False])
def test_latents_that_are_not_numbers_get_codes_that_exist_and_harm_no_others(model: Quantizer, training: bool) -> None:
    x = latents(model)
    whole = model.encode(x)
    x[1, ::2] = torch.nan
    x[1, 1::4, 0] = torch.inf
    result = model.train(training)(x)
    for codes in (result.codes, model.encode(x)):
        assert codes.min() >= 0
        assert codes.max() < model.codebook_size
    assert torch.equal(result.codes[[0, 2]], whole[[0, 2]])
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_image_does_not_depend_on_its_batch(model: Quantizer) -> None:
    x = latents(model)
    together = model(x)
    for index in range(len(x)):
        alone = model(x[index : index + 1])
        assert torch.equal(alone.codes[0], together.codes[index])
        assert torch.equal(alone.latents[0], together.latents[index])


def test_evaluation_takes_no_chances(model: Quantizer) -> None:
    before = torch.get_rng_state()
    model(latents(model))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_decoders_gradient_passes_as_if_nothing_had_been_rounded(name: str, model: Quantizer) -> None:
    if name == "gumbel":
        pytest.skip("its gradient is that of the relaxation")
    model.train()
    x, y = latents(model).requires_grad_(), latents(model).requires_grad_()
    upstream = torch.randn(3, 40, model.code_dim)
    (model(x).latents * upstream).sum().backward()
    (model.unquantized(y) * upstream).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert all(parameter.grad is None for parameter in model.parameters()), "the codebook learns from the loss alone"


def test_state_dict_keys_are_frozen(name: str, model: Quantizer) -> None:
    assert sorted(model.state_dict()) == sorted(_KEYS[name])


def test_look_ups_are_the_learned_codebooks_and_what_they_answered(name: str, model: Quantizer) -> None:
    x = latents(model)
    books = [key.removesuffix("codebook").rstrip(".") for key in _KEYS[name] if key.endswith("codebook")]
    expected = [] if name == "gumbel" else [model.get_submodule(book) for book in books]
    codes = model.encode(x)
    look_ups = model.look_ups(x, codes)
    assert [look_up.quantizer for look_up in look_ups] == expected
    assert [look_up.quantizer for look_up in model.look_ups(x, None)] == expected
    assert all(look_up.codes is None for look_up in model.look_ups(x, None))
    assert model.config.has_codebook is bool(expected)  # type: ignore[union-attr]
    if expected:
        assert sorted(torch.cat([look_up.codes for look_up in look_ups]).tolist()) == sorted(codes.flatten().tolist())
    for look_up in look_ups:
        compared = look_up.quantizer.normalize(look_up.latents)
        answers = torch.cdist(compared, look_up.quantizer.normalize(look_up.quantizer.codebook)).argmin(-1)
        assert torch.equal(answers, look_up.codes)
