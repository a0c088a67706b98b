"""Every setting of every run says whether a run that resumes may change it, and what decides the weights may not."""

from typing import Any

import pytest

from parti.next_token.train_next_token import TrainPartiConfig
from parti.objectives import OBJECTIVES
from parti.reranker.train_reranker import TrainRerankerConfig
from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig
from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from vqgan.config.changes import changes, fixed_settings, unclassified
from vqgan.config.schema import Config, validate
from vqgan.train_tokenizer import TrainVQGANConfig

RUNS: list[type[Config]] = [
    TrainVQGANConfig,
    *(objective.config_type for objective in OBJECTIVES.values()),
    TrainUpsamplerConfig,
    TrainRerankerConfig,
    TrainTextEncoderConfig,
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_every_field_is_said_to_be_fixed_or_to_change(run: type[Config]) -> None:
    assert list(unclassified(run)) == [], "say so beside its class: class X(Config, fixed=(...), may_change=(...))"


class Inner(Config, fixed=("heads",), may_change=("dropout",)):
    """A part."""

    heads: int = 2
    """Fixed."""
    dropout: float = 0.0
    """Free."""


class Outer(Config, fixed=("encoder",), may_change=("rate", "best")):
    """A run."""

    inner: Inner = Inner()
    """Always there."""
    encoder: Inner | None = None
    """May not come or go."""
    best: Inner | None = None
    """May."""
    rate: float = 0.1
    """Free."""


def test_what_is_fixed_by_dotted_names() -> None:
    assert fixed_settings(Outer()) == {"inner.heads": 2, "encoder": "none"}
    assert fixed_settings(Outer(encoder=Inner(heads=4))) == {"inner.heads": 2, "encoder": "given", "encoder.heads": 4}
    assert fixed_settings(Outer(inner=Inner(heads=3)), with_defaults=False) == {"inner.heads": 3, "encoder": "none"}


def test_what_changed_is_said_and_what_a_version_added_is_not() -> None:
    before = fixed_settings(Outer())
    assert changes(before, fixed_settings(Outer(rate=1.0, inner=Inner(dropout=0.5), best=Inner()))) == []
    assert changes(before, fixed_settings(Outer(inner=Inner(heads=4)))) == ["inner.heads was 2 and is 4"]
    assert changes(before, fixed_settings(Outer(encoder=Inner()))) == ["encoder was none and is given"]
    assert changes(before, before | {"inner.new": 1}) == []


def test_a_field_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="has no field head to be fixed or to change"):

        class Wrong(Config, fixed=("head",)):
            """Misspelt."""


def test_a_field_without_a_word_is_found() -> None:
    class Silent(Config, may_change=("rate",)):
        """Nobody said."""

        rate: float = 0.1
        """Free."""
        heads: int = 2
        """?"""
        inner: Inner = Inner()
        """A section needs nothing."""
        optional: Inner | None = None
        """One that may be null does."""

    assert [name.rpartition(".")[2] for name in unclassified(Silent)] == ["heads", "optional"]


HIDDEN: list[tuple[type[Config], dict[str, Any], str]] = [
    (TrainVQGANConfig, {"model": {"kind": "vit_vqgan", "encoder": {"heads": 4}}}, "model.encoder.heads"),
    (TrainVQGANConfig, {"model": {"kind": "cnn_vqgan", "groups": 16}}, "model.groups"),
    (TrainVQGANConfig, {"model": {"kind": "vit_vqgan", "quantizer": {"l2_normalize": False}}}, "l2_normalize"),
    (TrainPartiConfig, {"image_tokenizer": "x", "model": {"heads": 8}}, "model.heads"),
    (TrainPartiConfig, {"image_tokenizer": "x", "model": {"attention": "convolution"}}, "model.attention"),
    (TrainPartiConfig, {"image_tokenizer": "x", "model": {"options": {"rotary": True}}}, "model.options.rotary"),
    (TrainPartiConfig, {"image_tokenizer": "x", "model": {"options": {"norm": "rms"}}}, "model.options.norm"),
    (TrainRerankerConfig, {"model": {"text_encoder": {"heads": 4}}}, "model.text_encoder.heads"),
    (TrainTextEncoderConfig, {"model": {"heads": 4}}, "model.heads"),
]


@pytest.mark.parametrize(("run", "values", "name"), HIDDEN, ids=[name for _, _, name in HIDDEN])
def test_settings_that_no_tensor_shows_are_among_them(run: type[Config], values: dict[str, Any], name: str) -> None:
    base: dict[str, Any] = {"image_tokenizer": "x"} if "image_tokenizer" in values else {}
    if "kind" in values["model"]:
        base["model"] = {"kind": values["model"]["kind"]}
    before, now = (fixed_settings(validate(run, given, "test")) for given in (base, values))
    assert [line for line in changes(before, now) if name in line]
