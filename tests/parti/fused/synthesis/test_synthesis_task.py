"""Training of progressive text-to-image generation: who learns from what, what is shipped, and exact resume."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from parti.fused.synthesis.diagnostics import diagnose_synthesis
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.fused.synthesis.posterior_encoder import divergence
from parti.fused.synthesis.synthesis_task import SynthesisTask
from parti.fused.synthesis.train_synthesis import TrainSynthesisConfig, build_task, train
from tests.parti.fused.synthesis.tiny_synthesis import tiny_run
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.data.batch import Batch
from vqgan.training.loop import TrainingLoop
from vqgan.training.run_folder import RunFolder

pytestmark = pytest.mark.slow_threads

COLORS = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
GROUNDS = {"cat": (1.0, 1.0, 1.0), "dog": (-1.0, -1.0, -1.0), "hat": (-1.0, 1.0, -1.0), "jug": (1.0, 1.0, -1.0)}


ENCODER = {"base_channels": 4, "most_channels": 8}
GROWING = {
    "encoder": ENCODER,
    "task.scale_starts": (0, "25%", "50%"),
    "task.posterior_start": "25%",
    "task.adversarial.start": "50%",
}
"""Small images first, then an encoder, then the game."""


def tiny_task(run_dir: Path, check_image: Callable[..., bool] | None = None, **changes: Any) -> SynthesisTask:
    torch.manual_seed(0)
    return build_task(tiny_run(run_dir, **changes), Accelerator(cpu=True), tiny_text_tokenizer(), check_image)


def eight() -> Batch:
    """Eight captions; each image has the caption's color above and its thing's below."""
    images = torch.empty(8, 3, 32, 32)
    for image, caption in zip(images, CAPTIONS, strict=True):
        _, color, thing = caption.split()
        image[:, :16] = torch.tensor(COLORS[color])[:, None, None]
        image[:, 16:] = torch.tensor(GROUNDS[thing])[:, None, None]
    return Batch(images, [*CAPTIONS], [str(number) for number in range(8)])


def halves(batch: Batch) -> list[Batch]:
    return [Batch(batch.images[i : i + 4], batch.captions[i : i + 4], batch.names[i : i + 4]) for i in (0, 4)]


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])]


def test_each_players_update_leaves_the_other_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task(tmp_path)
    generator, discriminators = weights(task.generator), weights(task.discriminators)
    at_the_generators_step: list[object] = []
    step = task.optimizer.step

    def watched(number: int) -> dict[str, torch.Tensor]:
        gradients = [weight.grad for weight in task.discriminators.parameters() if weight.grad is not None]
        at_the_generators_step.extend([gradients, changed(task.generator, generator)])
        found = step(number)
        at_the_generators_step.append(changed(task.discriminators, discriminators))
        generator.update(weights(task.generator))
        return found

    monkeypatch.setattr(task.optimizer, "step", watched)
    metrics = task.train_step([eight()], 0)
    assert at_the_generators_step == [[], [], []]
    assert changed(task.generator, generator) == [], "the discriminators' step does not move the generator"
    assert all(weight.grad is None for weight in task.generator.parameters())
    assert set(changed(task.discriminators, discriminators)) > {"log_scale", "reader.project.weight"}
    assert metrics["skipped"].item() == metrics["discriminator_skipped"].item() == 0


def test_the_shared_pass_gives_the_gradients_of_a_pass_of_its_own(tmp_path: Path) -> None:
    """Of the generator: by the images' gradients, and by one backward pass through everything."""
    task = tiny_task(
        tmp_path, **{"model.trunk.text.dropout": 0.0, "task.matching": None, "task.adversarial.r1_gamma": 0.0}
    )
    (part,) = task.parts([eight()], 0)
    generated = task.generator(part.ids, part.noise)
    terms = task._distances(generated, part, 0) | task._adversarial_losses(
        generated, part, task.discriminators(generated, part.ids), 0
    )
    expected = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(task.generator.parameters()))
    seen: list[torch.Tensor | None] = []
    step = task.optimizer.step
    task.optimizer.step = lambda number: (  # type: ignore[method-assign]
        seen.extend(weight.grad.clone() for weight in task.generator.parameters()),  # type: ignore[union-attr]
        step(number),
    )[1]
    task.train_step([eight()], 0)
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_the_distance_teaches_alone_then_game_and_matching_come_and_it_goes(tmp_path: Path) -> None:
    changes = {
        "task.adversarial.start": "25%",
        "task.adversarial.warmup": 2,
        "task.reconstruction_end": "75%",
        "loop.steps": 8,
    }
    task = tiny_task(tmp_path, **changes)
    (part,) = task.parts([eight()], 0)
    opinions = task.discriminators(part.real, part.ids)
    images = [torch.zeros_like(real) for real in part.real]
    distances = [task._distances(images, part, step)["l1"].item() for step in range(8)]
    full = sum(real.abs().mean().item() / 2 for real in part.real)  # in [0, 1]
    assert distances == pytest.approx([full * share for share in (1, 1, 1, 0.75, 0.5, 0.25, 0, 0)])
    for name in ("adversarial", "matching"):
        grown = [task._adversarial_losses(images, part, opinions, step)[name].item() for step in range(1, 5)]
        assert grown == pytest.approx([grown[3] * share for share in (0, 0.5, 1, 1)])

    before = weights(task.discriminators)
    alone = task.train_step([eight()], 1)
    assert changed(task.discriminators, before) == []
    assert {"loss", "loss_l1", "skipped"} < alone.keys()
    assert "discriminator_skipped" not in alone
    assert "loss_discriminator" in task.train_step([eight()], 2)


def test_micro_batches_see_the_noise_of_the_whole_batch(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    (whole,) = task.parts([eight()], 3)
    parts = task.parts(halves(eight()), 3)
    assert torch.equal(whole.noise, torch.cat([part.noise for part in parts]))
    (later,) = task.parts([eight()], 4)
    assert not torch.equal(whole.noise, later.noise)


@pytest.mark.parametrize("player", ["generator", "discriminators"])
def test_a_player_without_a_finite_gradient_skips_alone(player: str, tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    module = getattr(task, player)
    handle = next(iter(module.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    before = weights(module)
    metrics = task.train_step([eight()], 0)
    handle.remove()
    flags = {"generator": metrics["skipped"].item(), "discriminators": metrics["discriminator_skipped"].item()}
    assert flags == {"generator": 0.0, "discriminators": 0.0} | {player: 1.0}
    moved = [name for name in changed(module, before) if name != "log_scale"]
    assert moved == []


@pytest.mark.parametrize(
    "changes",
    [
        {"task.adversarial.loss": "hinge"},
        {"task.matching": None, "task.distance": {"l1_weight": 0.0, "l2_weight": 0.0, "perceptual": {"weight": 0.0}}},
        {"task.precision": "bf16", "discriminators.scale.normalize": False},
    ],
    ids=["hinge", "the game alone", "bf16 without batch norm"],
)
def test_variants_take_a_step(changes: dict[str, Any], tmp_path: Path) -> None:
    metrics = tiny_task(tmp_path, **changes).train_step(halves(eight()), 0)
    assert all(value.isfinite() for value in metrics.values())
    expected = {"loss_adversarial", "loss_discriminator_8", "loss_discriminator_16", "loss_discriminator_32"}
    assert expected <= metrics.keys()
    assert ("loss_matching" in metrics) is (changes.get("task.matching", "joint") is not None)
    total = sum(metrics[name] for name in metrics if name.startswith("loss_discriminator_"))
    torch.testing.assert_close(metrics["loss_discriminator"], torch.as_tensor(total))


def test_a_batch_of_eight_is_learnt_by_heart(tmp_path: Path) -> None:
    """Each caption draws its own image and none of the others, whatever the noise; the game joins at 70%."""
    text = {"width": 32, "heads": 2, "mlp_width": 64, "dropout": 0.0}
    rates = {"kind": "muon", "learning_rate": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}
    task = tiny_task(
        tmp_path,
        **{
            "loop.steps": 60,
            "task.adversarial.start": "70%",
            "task.optimizer": rates | {"schedule": {"warmup": 10, "final_ratio": 0.1}},
            "task.bert_lr_ratio": 0.25,
            "task.distance": {"l2_weight": 20.0, "perceptual": {"weight": 0.0}},
            "model.trunk.text": text,
        },
    )
    batch = eight()
    for step in range(60):
        task.train_step([batch], step)
    generated = task._pipeline().generate([(caption, 100 + number) for number, caption in enumerate(batch.texts())])
    for images, real in zip(generated, task.parts([batch], 0)[0].real, strict=True):
        distances = (images[:, None] - real[None]).abs().mean(dim=(2, 3, 4))
        assert distances.argmin(1).tolist() == list(range(8))
        assert distances.diagonal().mean() < 0.3


def test_what_is_shipped_is_the_average_and_draws_by_prompt_and_seed_alone(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    for step in range(3):
        task.train_step([eight()], step)
    task.save_model(tmp_path / "model")
    model = ProgressiveTextToImage.from_pretrained(tmp_path)
    assert (model.sides, json.loads((tmp_path / "model" / "config.json").read_text())["kind"]) == (
        (8, 16, 32),
        "fused_synthesis",
    )
    averaged, trained = task.ema.module.state_dict(), task.generator.state_dict()
    for name, weight in model.generator.state_dict().items():
        assert torch.equal(weight, averaged[name])
    assert not torch.equal(averaged["constant.weight"], trained["constant.weight"])
    wanted = [("a red cat", 3), ("a blue hat", 3), ("a red cat", 4)]
    together = model.generate(wanted)
    for images, alone in zip(together, model.generate(wanted[:1]), strict=True):
        torch.testing.assert_close(images[:1], alone, atol=1e-5, rtol=1e-4)
    first, again = (model("a red cat", num_images=2, seed=3) for _ in range(2))
    assert [one.seed for one in first.generated] == [3, 4]
    assert [one.tobytes() for one in first.images] == [one.tobytes() for one in again.images]
    assert model("a red cat", all_scales=True).images[0].size == (96, 32)


def test_evaluation_judges_the_largest_images_by_their_own_and_by_another_caption(tmp_path: Path) -> None:
    asked: list[tuple[tuple[int, int], str]] = []

    def check_image(image: Any, caption: str) -> bool:
        asked.append((image.size, caption))
        return len(asked) <= 3

    task = tiny_task(tmp_path, check_image)
    metrics = task.evaluate([eight()])
    captions = eight().texts()[:4]
    assert asked == [((32, 32), caption) for caption in [*captions, *captions[1:], captions[0]]]
    assert (metrics["prompt_accuracy"], metrics["random_pairing_accuracy"]) == (0.75, 0.0)
    assert 0 < metrics["diversity"] < 1
    with pytest.raises(ValueError, match="no validation caption"):
        task.evaluate([])


def test_the_preview_shows_every_scale(tmp_path: Path) -> None:
    assert tiny_task(tmp_path).preview(eight()).width > 3 * 3 * 32


def test_scales_encoder_and_game_join_one_after_the_other(tmp_path: Path) -> None:
    """Smallest images at first, from step 2 the next and the encoder, from step 4 the largest and the game."""
    task = tiny_task(tmp_path, **GROWING | {"loop.steps": 8, "task.posterior_fraction": 0.25})
    seen: list[tuple[int, int]] = []
    painter = task.learner.parallel
    painter.register_forward_hook(lambda _module, given, _found: seen.append((len(given[2]), given[3])))
    encoder = weights(task.encoder)  # type: ignore[arg-type]
    finest = weights(task.generator.finer["14"])
    moved = []
    for step in range(6):
        metrics = task.train_step([eight()], step)
        assert ("loss_adversarial" in metrics) is (step >= 4)
        assert ("loss_divergence" in metrics) is ("divergence" in metrics) is (step >= 2)
        moved.append((bool(changed(task.encoder, encoder)), bool(changed(task.generator.finer["14"], finest))))  # type: ignore[arg-type]
    assert seen == [(0, 1), (0, 1), (8, 2), (8, 2), (2, 3), (2, 3)]
    assert moved == [(False, False), (False, False), (True, False), (True, False), (True, True), (True, True)]


def test_the_distance_is_of_images_generated_with_the_noise_of_their_real_ones(tmp_path: Path) -> None:
    """In the adversarial: of the first two of eight, by hand, with a nat of divergence a scale for 0.03."""
    changes = {"task.posterior_fraction": 0.25, "encoder": ENCODER, "model.trunk.text.dropout": 0.0}
    task = tiny_task(tmp_path, **changes)
    assert task.encoder is not None
    (part,) = task.parts([eight()], 0)
    with torch.no_grad():
        mean, log_variance = task.encoder(part.real[-1][:2])
        generated = task.generator(part.ids[:2], mean + (log_variance / 2).exp() * part.noise[:2])
    expected = sum((one - other[:2]).abs().mean() / 2 for one, other in zip(generated, part.real, strict=True))
    metrics = task.train_step([eight()], 0)
    torch.testing.assert_close(metrics["loss_l1"], torch.as_tensor(expected))
    torch.testing.assert_close(metrics["divergence"], divergence(mean, log_variance))
    torch.testing.assert_close(metrics["loss_divergence"], 0.03 * 3 * metrics["divergence"])


@pytest.mark.parametrize(
    "growing",
    [
        pytest.param(False, id="of one size", marks=pytest.mark.slow),
        pytest.param(True, id="growing, with an encoder"),
    ],
)
def test_a_run_that_was_stopped_gives_the_bits_of_one_that_was_not(
    growing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(run_dir: Path) -> TrainSynthesisConfig:
        return tiny_run(run_dir, **(GROWING if growing else {}))

    assert train(settings(tmp_path / "straight"))
    should_stop = TrainingLoop._should_stop

    def stopping(_loop: TrainingLoop, done: int) -> bool:
        if done == 4:
            monkeypatch.setattr(TrainingLoop, "_should_stop", should_stop)
            return True
        return False

    monkeypatch.setattr(TrainingLoop, "_should_stop", stopping)
    assert train(settings(tmp_path / "stopped")) is False
    torch.manual_seed(12345)  # another process would start from another random state
    assert train(settings(tmp_path / "stopped")) is True
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "step-0000006" / "state.pt", weights_only=True)
        for name in ("straight", "stopped")
    )
    assert {"generator", "ema", "optimizer", "discriminators", "discriminator_optimizer"} < one.keys()
    for part in ("generator", "ema", "discriminators", *(["encoder"] if growing else [])):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    flat = [
        torch.utils._pytree.tree_leaves((state["optimizer"], state["discriminator_optimizer"]))
        for state in (one, other)
    ]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*flat, strict=True))
    timings = ("seconds", "images_per_second")
    records: Sequence[list[dict[str, Any]]] = [
        [
            {key: value for key, value in record.items() if key not in timings}
            for record in RunFolder(path).read_metrics()
        ]
        for path in (tmp_path / "straight", tmp_path / "stopped")
    ]
    assert records[0] == records[1]
    assert any("r1_penalty" in record for record in records[0])
    assert any("prompt_accuracy" in record for record in records[0])


def test_a_healthy_run_has_no_finding_and_a_sick_one_says_what_helps() -> None:
    healthy = {"real_accuracy": 0.8, "fake_accuracy": 0.8, "caption_accuracy": 0.9}
    healthy |= {"loss_discriminator_8": 0.9, "loss_discriminator_16": 1.0, "divergence": 6.0}
    assert diagnose_synthesis(healthy, (8, 16), 500) == []
    for change, words in (
        ({"loss_discriminator_16": 0.01}, "wins at 16 pixels.*r1_gamma"),
        ({"real_accuracy": 0.6, "fake_accuracy": 0.42}, "at chance.*discriminator_optimizer"),
        ({"caption_accuracy": 0.51}, "ignore captions.*task.matching"),
        ({"divergence": 0.2}, "encoder encodes almost nothing.*task.divergence_weight"),
        ({"loss": float("nan")}, "not finite: loss"),
        ({"skipped_share": 0.5}, "50.0% of the steps had no finite gradient"),
    ):
        (finding,) = diagnose_synthesis(healthy | change, (8, 16), 500)
        assert re.search(words, finding)
        if not {"loss", "skipped_share"} & change.keys():
            assert diagnose_synthesis(healthy | change, (8, 16), 100) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.transform": {"image_size": 64}}, "data.transform.image_size 64 and model.trunk.image_size 32 differ"),
        ({"loop.gradient_accumulation_steps": 4}, "no second caption that would be a wrong one"),
        (
            {"task.adversarial.start": 2, "task.distance.l1_weight": 0.0},
            "adversarial.start is 2, and until then nothing is minimized",
        ),
        (
            {"task.scale_starts": (0, 2, 1), "task.adversarial.start": 2},
            "each larger size joins no earlier than the one before",
        ),
        ({"task.scale_starts": (0, 0, "50%")}, "the game when all are there"),
        ({"start_from": "runs/trunk"}, "set text.kind to saved and text.folder to 'runs/trunk'"),
    ],
)
def test_configs_that_do_not_fit_are_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny_run(tmp_path, **changes)
