"""The stage-1 task: who learns from what, and when; and that layout and precision change no result."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import vqgan.discriminator_trainer
from vqgan.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig
from vqgan.config.schema import validate
from vqgan.data.batch import Batch
from vqgan.discriminator_trainer import DiscriminatorTrainer
from vqgan.layers.transformer import TransformerConfig
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqgan.quantizers import NearestConfig

pytestmark = pytest.mark.threads

STACK = TransformerConfig(depth=1, width=16, heads=2, mlp_width=24)
STEPS = 10
ADVERSARIAL = {
    "discriminator": {"kind": "stylegan2", "channels": [4, 6, 8, 8]},
    "optimizer": {"learning_rate": 1e-2, "schedule": {"shape": "constant"}},
}


def build(output: str = "rgb", **settings: Any) -> AutoencoderTask:
    torch.manual_seed(0)
    adversarial = ADVERSARIAL | settings.pop("adversarial", {})
    values = {"perceptual": {"weight": 0.0}, "precision": "fp32", "adversarial": adversarial} | settings
    model = ViTVQGANConfig.model_validate(
        {
            "image_size": 32,
            "encoder": STACK,
            "decoder": STACK,
            "output": output,
            "quantizer": NearestConfig(codebook_size=16, code_dim=4),
        }
    )
    config = validate(AutoencoderTaskConfig, values, "test")
    return AutoencoderTask(config, ViTVQGAN(model), Accelerator(), STEPS, seed=0)


def batch(size: int = 4, seed: int = 0) -> Batch:
    images = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(images, [None] * size, [str(number) for number in range(size)])


def discriminator_trainer(task: AutoencoderTask) -> DiscriminatorTrainer:
    assert task.discriminator_trainer is not None
    return task.discriminator_trainer


def stand_still(_step: int) -> dict[str, Tensor]:
    """In place of an optimizer's step."""
    return {"skipped": torch.tensor(0.0)}


def weights(network: nn.Module | None) -> dict[str, Tensor]:
    assert network is not None
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def moved(before: dict[str, Tensor], network: nn.Module | None) -> set[str]:
    assert network is not None
    return {name for name, weight in network.state_dict().items() if not torch.equal(weight, before[name])}


def test_the_total_is_the_sum_of_its_terms() -> None:
    perceptual = {"backbone": "squeeze", "weights": "random"}
    task = build("logit_laplace", l1_weight=0.5, logit_laplace_weight=0.1, perceptual=perceptual)
    metrics = task.train_step([batch()], 0)
    terms = ("l1", "l2", "logit_laplace", "perceptual", "adversarial", "codebook")
    assert {name.removeprefix("loss_") for name in metrics if name.startswith("loss_")} == {*terms, "discriminator"}
    assert metrics["loss"].item() == pytest.approx(sum(metrics[f"loss_{term}"].item() for term in terms), rel=1e-5)
    assert all(metric.isfinite() and not metric.requires_grad for metric in metrics.values())


def test_each_player_learns_from_its_own_loss_only(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build()
    discriminator = discriminator_trainer(task).discriminator
    player, check_image = task.optimizer, discriminator_trainer(task).optimizer
    order: list[str] = []
    step, judge_step = player.step, check_image.step

    def first(number: int) -> Any:
        order.append("autoencoder")
        assert all(parameter.grad is None for parameter in discriminator.parameters())
        assert all(parameter.grad is not None for parameter in task.autoencoder.parameters())
        return step(number)

    def second(number: int) -> Any:
        order.append("discriminator")
        assert all(parameter.grad is None for parameter in task.autoencoder.parameters())
        assert all(parameter.grad is not None for parameter in discriminator.parameters())
        return judge_step(number)

    monkeypatch.setattr(player, "step", first)
    monkeypatch.setattr(check_image, "step", second)
    task.train_step([batch()], 1)
    assert order == ["autoencoder", "discriminator"]


def test_both_players_start_together_and_the_weight_grows() -> None:
    task = build(adversarial={"start": "50%", "warmup": "40%", "weight": 0.1})
    before = weights(discriminator_trainer(task).discriminator)
    for step in range(5):
        metrics = task.train_step([batch()], step)
        assert "loss_adversarial" not in metrics
        assert "loss_discriminator" not in metrics
    assert moved(before, discriminator_trainer(task).discriminator) == set()
    metrics = task.train_step([batch()], 5)
    assert {"loss_adversarial", "loss_discriminator", "real_accuracy", "fake_accuracy"} <= metrics.keys()
    assert moved(before, discriminator_trainer(task).discriminator) == before.keys()

    frozen = build(adversarial={"start": "50%", "warmup": "40%", "weight": 0.1})
    frozen.optimizer.step = stand_still  # type: ignore[method-assign,assignment]
    discriminator_trainer(frozen).optimizer.step = stand_still  # type: ignore[method-assign,assignment]
    sizes = [frozen.train_step([batch()], step)["loss_adversarial"].item() for step in range(5, 10)]
    assert [size / sizes[-1] for size in sizes] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_r1_comes_every_so_often_and_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build(precision="bf16", adversarial={"r1_every": 3})
    kinds: list[torch.dtype] = []
    r1_penalty = vqgan.discriminator_trainer.r1_penalty

    def watched(discriminator: nn.Module, images: Tensor) -> Tensor:
        penalty = r1_penalty(lambda x: kinds.append((logits := discriminator(x)).dtype) or logits, images)
        kinds.append(penalty.dtype)
        return penalty

    monkeypatch.setattr(vqgan.discriminator_trainer, "r1_penalty", watched)
    assert ["r1_penalty" in task.train_step([batch()], step) for step in range(5)] == [True, False, False, True, False]
    assert set(kinds) == {torch.float32}


def test_without_weight_there_is_no_discriminator() -> None:
    task = build(adversarial={"weight": 0.0})
    assert task.discriminator_trainer is None
    assert task.stateful().keys() == {"autoencoder", "ema", "optimizer", "codebook_maintenance"}
    assert "loss_adversarial" not in task.train_step([batch()], 0)


def test_the_adaptive_weight_balances_the_gradients() -> None:
    task = build(adversarial={"adaptive": True, "weight": 1.0})
    task.optimizer.step = stand_still  # type: ignore[method-assign,assignment]
    grown = build(adversarial={"adaptive": True, "weight": 1.0}, l2_weight=4.0)
    grown.optimizer.step = stand_still  # type: ignore[method-assign,assignment]
    ratio = grown.train_step([batch()], 1)["loss_adversarial"] / task.train_step([batch()], 1)["loss_adversarial"]
    assert ratio.item() == pytest.approx(4, rel=1e-2), "it follows the reconstruction's gradient"


def test_lecam_keeps_the_logits_near_the_other_sides_average() -> None:
    task = build(adversarial={"lecam_weight": 0.5, "r1_gamma": 0.0, "lecam_decay": 0.5})
    discriminator_trainer(task).optimizer.step = stand_still  # type: ignore[method-assign,assignment]
    metrics = task.train_step([batch()], 0)
    plain = build(adversarial={"r1_gamma": 0.0})
    discriminator_trainer(plain).optimizer.step = stand_still  # type: ignore[method-assign,assignment]
    assert "lecam_penalty" not in plain.train_step([batch()], 0)
    assert metrics["lecam_penalty"] > 0
    state = discriminator_trainer(task).stateful()["logit_averages"].state_dict()
    assert state["means"].shape == (2,)
    unseen = build(adversarial={"lecam_weight": 0.5, "r1_gamma": 0.0, "lecam_decay": 0.5})
    discriminator_trainer(unseen).stateful()["logit_averages"].load_state_dict(state)
    assert torch.equal(discriminator_trainer(unseen).stateful()["logit_averages"].state_dict()["means"], state["means"])


def test_frozen_codes_train_the_decoder_alone() -> None:
    torch.manual_seed(0)
    model = build().autoencoder
    model.freeze_codes()
    config = validate(AutoencoderTaskConfig, {"perceptual": {"weight": 0.0}, "adversarial": ADVERSARIAL}, "test")
    task = AutoencoderTask(config, model, Accelerator(), STEPS, seed=0)
    before, codes = weights(model), model(batch().images).quantized.codes
    metrics = task.train_step([batch()], 0)
    assert "loss_codebook" not in metrics
    assert moved(before, model) == {name for name in before if name.startswith("decoder.")}
    assert torch.equal(model(batch().images).quantized.codes, codes)


def test_the_metrics_of_the_codebook_are_logged() -> None:
    task = build(adversarial={"weight": 0.0})
    metrics = task.train_step([batch()], 0)
    counts = torch.bincount(build(adversarial={"weight": 0.0}).autoencoder(batch().images).quantized.codes.flatten())
    shares = counts[counts > 0] / counts.sum()
    assert 1 < len(shares) < 16, "or else the metrics would be the same for any codes"
    assert metrics["batch_usage"].item() == pytest.approx(len(shares) / 16)
    assert metrics["batch_perplexity"].item() == pytest.approx(shares.log().mul(-shares).sum().exp().item(), rel=1e-4)
    assert metrics["batch_entropy"].exp().item() == pytest.approx(metrics["batch_perplexity"].item(), rel=1e-4)
    norms = task.autoencoder.quantizer.codebook.norm(dim=-1)
    assert metrics["code_norm_spread"].item() == pytest.approx((norms.std(correction=0) / norms.mean()).item(), rel=0.1)
    assert metrics["dead_codes"].item() == pytest.approx(1 - len(shares) / 16)


def test_the_codebook_rests_in_the_continuous_phase_and_then_starts_from_data() -> None:
    task = build(codebook_maintenance={"unquantized": "25%"}, adversarial={"weight": 0.0})
    before = weights(task.autoencoder)
    for step in range(3):
        metrics = task.train_step([batch()], step)
        assert "loss_codebook" not in metrics
        assert "quantization_error" not in metrics
    assert moved(before, task.autoencoder) == before.keys() - {"quantizer.codebook"}
    metrics = task.train_step([batch()], 3)
    assert metrics["codes_replaced"] == 16
    assert metrics["loss_codebook"] > 0
    assert moved(before, task.ema.module) == before.keys(), "the averaged codebook starts there too"


def test_replaced_codes_go_into_the_average_at_once() -> None:
    task = build(codebook_maintenance={"restart_every": 2}, adversarial={"weight": 0.0}, ema={"decay": 0.999})
    with torch.no_grad():
        task.autoencoder.quantizer.codebook[:] = task.autoencoder.quantizer.codebook[0]
    metrics = [task.train_step([batch(seed=step)], step) for step in (6, 7, 8)]
    dead = int(metrics[2]["codes_replaced"])
    assert dead >= 8
    averaged, trained = task.ema.module.quantizer.codebook, task.autoencoder.quantizer.codebook
    close = (averaged - trained).abs().max(-1).values < 1e-3  # else they would be a fifth of the way, after one step
    assert close.sum() >= dead


def test_channels_last_changes_layout_and_no_result() -> None:
    settings: dict[str, Any] = {"perceptual": {"backbone": "squeeze", "weights": "random"}}
    task = build(**settings)
    plain = build(**settings)
    assert task.losses.perceptual is not None
    assert plain.losses.perceptual is not None
    for network in (discriminator_trainer(task).discriminator, task.losses.perceptual):
        kernels = [weight for weight in network.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
        assert kernels
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    discriminator_trainer(plain).discriminator.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain.losses.perceptual.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for step in range(3):
        metrics, expected = task.train_step([batch()], step), plain.train_step([batch()], step)
        for name, metric in expected.items():
            assert metrics[name].item() == pytest.approx(metric.item(), rel=2e-3, abs=1e-5), name


def test_bf16_trains_close_to_fp32_with_weights_in_fp32() -> None:
    exact, fast = build(precision="fp32"), build(precision="bf16")
    wanted, metrics = exact.train_step([batch()], 0), fast.train_step([batch()], 0)
    assert metrics["loss"].item() == pytest.approx(wanted["loss"].item(), rel=2e-2)
    assert metrics["loss"].item() != wanted["loss"].item()
    assert {parameter.dtype for parameter in fast.autoencoder.parameters()} == {torch.float32}
    assert {metric.dtype for name, metric in metrics.items() if name.startswith("loss")} == {torch.float32}


def test_a_share_of_the_batch_is_what_the_costly_networks_see() -> None:
    task = build(adversarial={"batch_fraction": 0.5})
    seen: list[int] = []
    discriminator_trainer(task).discriminator.register_forward_pre_hook(
        lambda _module, inputs: seen.append(len(inputs[0]))
    )
    task.train_step([batch(8)], 1)
    assert seen == [4, 4], "the drawn ones, for both players, and the real ones"


def test_evaluation_looks_at_the_average_and_changes_nothing() -> None:
    task = build()
    task.train_step([batch()], 0)
    before, random_state = weights(task.autoencoder), torch.get_rng_state()
    metrics = task.evaluate(iter([batch(4), batch(3, seed=1)]))
    assert metrics.keys() == {"psnr", "codebook_usage", "codebook_perplexity"}
    whole = Batch(torch.cat([batch(4).images, batch(3, seed=1).images]), [None] * 7, [""] * 7)
    assert task.evaluate(iter([whole])) == pytest.approx(metrics)
    assert task.preview(batch()).size[0] > 32
    assert moved(before, task.autoencoder) == set()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert task.autoencoder.training
    assert all(parameter.requires_grad for parameter in task.autoencoder.parameters())
