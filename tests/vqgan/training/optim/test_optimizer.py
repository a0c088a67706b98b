"""Optimizers: what is decayed, what muon gets, clipping, the rate of each step, and what a checkpoint brings back."""

from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from parti.models import EncoderDecoder, EncoderDecoderConfig, TokenSpace
from vqgan.config.schedule import ScheduleConfig
from vqgan.layers.transformer import TransformerConfig
from vqgan.models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminatorConfig,
    StyleGAN2DiscriminatorConfig,
    build_discriminator,
)
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqgan.quantizers import NearestConfig
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig, hidden_matrices

pytestmark = pytest.mark.threads

KINDS = get_args(OptimizerConfig.model_fields["kind"].annotation)
STACK = TransformerConfig(depth=1, width=8, heads=2, mlp_width=12)
AUTOENCODER = ViTVQGANConfig(
    image_size=8, patch_size=4, encoder=STACK, decoder=STACK, quantizer=NearestConfig(codebook_size=8, code_dim=4)
)
GENERATOR = EncoderDecoderConfig(encoder_depth=1, decoder_depth=1, width=8, heads=2, mlp_width=12, dropout=0.0)
TOKENS = TokenSpace(text_vocab_size=20, text_length=4, image_vocab_size=8, image_grid=(2, 2))


def autoencoder() -> ViTVQGAN:
    torch.manual_seed(0)
    return ViTVQGAN(AUTOENCODER)


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    mixed = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 2), nn.Embedding(5, 4))
    return [autoencoder(), EncoderDecoder(GENERATOR, TOKENS), mixed]


def names(network: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    known = {id(parameter): name for name, parameter in network.named_parameters()}
    return {known[id(parameter)] for parameter in parameters}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_weights_of_linear_and_convolution_layers_are_decayed_or_given_to_muon(kind: str, which: int) -> None:
    network = networks()[which]
    matrices = {
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    assert names(network, hidden_matrices(network)) == matrices
    config = OptimizerConfig.model_validate({"kind": kind, "weight_decay": 0.1})
    decayed, plain = Optimizer(config, network, steps=10)._optimizer.param_groups
    assert names(network, decayed["params"]) == matrices
    assert names(network, plain["params"]) == {name for name, _ in network.named_parameters()} - matrices
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    if kind == "muon":
        assert (decayed.get("use_fallback", False), plain["use_fallback"]) == (False, True)


def test_what_stays_undecayed_by_name() -> None:
    network = autoencoder()
    _, plain = Optimizer(OptimizerConfig(), network, steps=10)._optimizer.param_groups
    undecayed = names(network, plain["params"])
    assert {
        "quantizer.codebook",
        "encoder.transformer.positions",
        "decoder.transformer.norm.weight",
        "encoder.to_latent.bias",
    } <= undecayed
    assert not any(name.endswith("qkv.weight") for name in undecayed)


@pytest.mark.parametrize("kind", ["adafactor", "adamw"])
def test_decay_is_decoupled_and_scaled_by_the_rate(kind: str) -> None:
    network = autoencoder()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    schedule = ScheduleConfig(shape="constant")
    settings = {"kind": kind, "learning_rate": 0.1, "weight_decay": 0.5, "schedule": schedule}
    optimizer = Optimizer(OptimizerConfig.model_validate(settings), network, steps=10)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    matrices = names(network, hidden_matrices(network))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name in matrices else 1.0))


def with_gradient(value: float = 1.0) -> nn.Linear:
    layer = nn.Linear(4, 4)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
        parameter.grad = torch.full_like(parameter, value)
    return layer


def test_the_rate_of_a_step_is_the_schedules() -> None:
    layer = with_gradient()
    schedule = ScheduleConfig(shape="linear", warmup=2, final_ratio=0.5)
    optimizer = Optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.0, schedule=schedule), layer, steps=5)
    rates, moved = [], []
    for step in range(5):
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = layer.bias.detach().clone()
        rates.append(optimizer.step(step)["learning_rate"].item())
        moved.append((before - layer.bias.detach()).mean().item())
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05])
    assert moved == pytest.approx(rates, rel=1e-4), "Adam moves by the rate where the gradient is constant"
    assert layer.bias.grad is None


def test_muon_moves_matrices_by_orthogonal_steps_and_the_rest_by_a_share_of_the_rate() -> None:
    layer = with_gradient()
    layer.weight.grad = torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    config = OptimizerConfig(kind="muon", learning_rate=0.1, adam_ratio=0.3, weight_decay=0.0)
    Optimizer(config, layer, steps=10).step(0)
    singular = torch.linalg.svdvals(layer.weight.detach())
    assert singular.max() / singular.min() < 4, "the gradient's were 1 to 1000"
    assert -layer.bias.detach() == pytest.approx(torch.full((4,), 0.03), rel=1e-4)


def test_a_matrix_too_narrow_for_muon_learns_at_adams_rate() -> None:
    layer = nn.Linear(300, 2)  # timm orthogonalizes nothing below 4 rows
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.ones_like(layer.weight)
    Optimizer(OptimizerConfig(kind="muon", learning_rate=0.1, adam_ratio=0.3, weight_decay=0.0), layer, 10).step(0)
    assert -layer.weight.detach() == pytest.approx(torch.full((2, 300), 0.03), rel=1e-4)


@pytest.mark.parametrize(("limit", "scale"), [(None, 1.0), (100.0, 1.0), (2.0, 2.0 / 20**0.5)])
def test_clipping(limit: float | None, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = with_gradient()
    optimizer = Optimizer(OptimizerConfig(clip_norm=limit), layer, steps=10)
    applied: list[torch.Tensor] = []
    step = optimizer._optimizer.step

    def watched(*arguments: Any) -> Any:
        assert layer.weight.grad is not None
        applied.append(layer.weight.grad.clone())
        return step(*arguments)

    monkeypatch.setattr(optimizer._optimizer, "step", watched)
    metrics = optimizer.step(0)
    assert metrics["gradient_norm"].item() == pytest.approx(20**0.5), "what is logged is the norm before clipping"
    torch.testing.assert_close(applied[0], torch.full((4, 4), scale), atol=1e-5, rtol=1e-5)


def test_parameters_without_a_gradient_stay() -> None:
    layer = with_gradient()
    layer.bias.grad = None
    metrics = Optimizer(OptimizerConfig(clip_norm=1.0), layer, steps=10).step(0)
    assert metrics["gradient_norm"].item() == pytest.approx(4.0)
    assert not layer.bias.any()
    assert layer.weight.all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf"), 1e30])  # the last: its square is too large
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, lost: float, clip: float | None) -> None:
    config = OptimizerConfig.model_validate({"kind": kind, "clip_norm": clip})
    layers = with_gradient(), with_gradient()
    disturbed, plain = (Optimizer(config, layer, steps=10) for layer in layers)
    for optimizer in (disturbed, plain):
        assert optimizer.step(0)["skipped"] == 0
    moments = disturbed.state_dict()["optimizer"]
    before = deepcopy((layers[0].state_dict(), moments["state"])), deepcopy(moments["param_groups"])
    for parameter in layers[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    assert layers[0].bias.grad is not None
    layers[0].bias.grad[2] = lost
    metrics = disturbed.step(5)
    assert metrics.keys() == {"skipped"}
    assert metrics["skipped"] == 1
    assert metrics["skipped"].device.type == "cpu"
    assert all(parameter.grad is None for parameter in layers[0].parameters())
    moments = disturbed.state_dict()["optimizer"]
    torch.testing.assert_close((layers[0].state_dict(), moments["state"]), before[0], rtol=0, atol=0)
    assert moments["param_groups"] == before[1]
    # And the step after it is the step of a run that never met it.
    for layer, optimizer in zip(layers, (disturbed, plain), strict=True):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step(1)
    torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_goes_on_and_follows_this_configs_settings(kind: str) -> None:
    config = OptimizerConfig.model_validate({"kind": kind, "weight_decay": 0.1})
    one, two = with_gradient(), with_gradient()
    first = Optimizer(config, one, steps=10)
    first.step(0)
    two.load_state_dict(one.state_dict())
    changed = config.model_copy(update={"weight_decay": 0.2, "betas": (0.5, 0.5)})
    second = Optimizer(changed, two, steps=10)
    second.load_state_dict(deepcopy(first.state_dict()))
    decayed, plain = second._optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"], decayed["betas"]) == (0.2, 0.0, (0.5, 0.5))
    again = Optimizer(config, two, steps=10)
    again.load_state_dict(deepcopy(first.state_dict()))
    for layer, optimizer in ((one, first), (two, again)):
        for parameter in layer.parameters():
            parameter.grad = torch.arange(float(parameter.numel())).view_as(parameter)
        optimizer.step(1)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


def test_the_state_of_another_kind_is_refused() -> None:
    saved = Optimizer(OptimizerConfig(kind="muon"), with_gradient(), steps=10).state_dict()
    with pytest.raises(ValueError, match="saved by muon, now adamw"):
        Optimizer(OptimizerConfig(), with_gradient(), steps=10).load_state_dict(saved)


@pytest.mark.parametrize("config", [StyleGAN2DiscriminatorConfig(channels=(4, 6, 8)), PatchDiscriminatorConfig()])
def test_all_matrices_of_a_discriminator_are_decayed(config: DiscriminatorConfig) -> None:
    network = build_discriminator(config, 16 if config.kind == "stylegan2" else 32)
    expected = {id(parameter) for parameter in network.parameters() if parameter.ndim > 1}
    assert {id(parameter) for parameter in hidden_matrices(network)} == expected
    assert expected
