"""The upsampler's task: what it reads and minimizes, who learns, its metrics, that it learns, and that it resumes."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parti.upsampler.train_upsampler import TrainUpsamplerConfig, train
from parti.upsampler.upsampler import TrainedOn, Upsampler, UpsamplerConfig, bicubic
from parti.upsampler.upsampler_task import UpsamplerTask, UpsamplerTaskConfig
from tests.tiny import AUTOENCODER, tiny_image_tokenizer
from vqgan.config.schema import ConfigError, describe_fields, validate
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.fidelity import psnr, ssim
from vqgan.models.vit_vqgan import ViTVQGAN
from vqgan.training.loop import TrainingLoop
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

pytestmark = pytest.mark.slow_threads

MODEL = {"blocks": 1, "channels": 8, "expansion": 2}
ADVERSARIAL = {
    "discriminator": {"kind": "stylegan2", "channels": [4, 6, 8, 8]},
    "optimizer": {"learning_rate": 1e-2, "schedule": {"shape": "constant"}},
}
PLAIN = {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.0}, "precision": "fp32"}
BOTH = PLAIN | {"adversarial": ADVERSARIAL}


class CoarseColors(ImageTokenizer):
    """A tokenizer that needs no training: 32 x 32 codes, each a pixel's color rounded to five levels a channel."""

    def __init__(self) -> None:
        super().__init__(ViTVQGAN(AUTOENCODER.model_copy(update={"image_size": 32})))

    def encode(self, images: Tensor, *, check_range: bool = True) -> Tensor:  # noqa: ARG002
        levels = ((images + 1) * 2).round().long()  # (B, 3, 32, 32) in 0 ... 4
        return (levels * torch.tensor([25, 5, 1]).view(3, 1, 1)).sum(1).flatten(1)

    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:  # noqa: ARG002
        levels = torch.stack([codes // 25, codes // 5 % 5, codes % 5], dim=1)
        return levels.unflatten(2, (32, 32)).float() / 2 - 1


def build(tokenizer: ImageTokenizer | None = None, steps: int = 10, scale: int = 2, **settings: Any) -> UpsamplerTask:
    torch.manual_seed(0)
    config = validate(UpsamplerTaskConfig, settings, "test")
    upsampler = Upsampler(validate(UpsamplerConfig, MODEL | {"scale": scale}, "test"))
    return UpsamplerTask(config, upsampler, tokenizer or tiny_image_tokenizer(), build_accelerator(), steps)


def batch(size: int = 4, side: int = 32) -> Batch:
    """Originals; the tiny tokenizer reads 16 x 16."""
    images = torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, [None] * size, [str(number) for number in range(size)])


def part(whole: Batch, start: int, stop: int) -> Batch:
    return Batch(whole.images[start:stop], whole.captions[start:stop], whole.names[start:stop])


def weights(task: UpsamplerTask) -> dict[str, dict[str, Tensor]]:
    networks = {"upsampler": task.upsampler, "ema": task.ema.module, "tokenizer": task.image_tokenizer}
    if task.discriminator_trainer is not None:
        networks["discriminator"] = task.discriminator_trainer.discriminator
    return {
        name: {key: weight.clone() for key, weight in network.state_dict().items()}
        for name, network in networks.items()
    }


def moved(before: dict[str, dict[str, Tensor]], task: UpsamplerTask) -> set[str]:
    after = weights(task)
    return {name for name in before if any(not torch.equal(after[name][key], before[name][key]) for key in after[name])}


def test_it_reads_reconstructions_of_images_made_small() -> None:
    task, originals = build(**PLAIN), batch().images
    small = originals.unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean(dim=(3, 5))
    expected = task.image_tokenizer.decode(task.image_tokenizer.encode(small))
    torch.testing.assert_close(task.reconstruct(originals), expected)


def test_the_total_is_the_sum_of_its_terms() -> None:
    perceptual = {"backbone": "squeeze", "weights": "random"}
    task = build(**BOTH | {"l1_weight": 0.5, "l2_weight": 2.0, "perceptual": perceptual})
    originals = batch().images
    with torch.no_grad():
        difference = (task.upsampler(task.reconstruct(originals)) - originals) / 2
    metrics = task.train_step([batch()], 0)
    terms = ("l1", "l2", "perceptual", "adversarial")
    assert {name.removeprefix("loss_") for name in metrics if name.startswith("loss_")} == {*terms, "discriminator"}
    assert metrics["loss"].item() == pytest.approx(sum(metrics[f"loss_{term}"].item() for term in terms), rel=1e-5)
    assert metrics["loss_l1"].item() == pytest.approx(0.5 * difference.abs().mean().item(), rel=1e-5)
    assert metrics["loss_l2"].item() == pytest.approx(2.0 * difference.square().mean().item(), rel=1e-5)
    assert all(metric.isfinite() and not metric.requires_grad for metric in metrics.values())


def test_a_loss_without_the_original_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing says what an image should look like; give one of them a weight"):
        build(**PLAIN | {"l2_weight": 0.0})


@pytest.mark.parametrize("adaptive", [False, True])
def test_both_players_learn_and_the_tokenizer_does_not(adaptive: bool) -> None:
    task = build(**BOTH | {"adversarial": ADVERSARIAL | {"start": 1, "adaptive": adaptive}})
    before = weights(task)
    metrics = task.train_step([batch()], 0)
    assert "loss_adversarial" not in metrics
    assert moved(before, task) == {"upsampler", "ema"}
    before = weights(task)
    metrics = task.train_step([batch()], 1)
    assert metrics["adversarial_weight"] > 0
    assert moved(before, task) == {"upsampler", "ema", "discriminator"}
    assert all(parameter.grad is None for parameter in task.image_tokenizer.parameters())


def test_both_doublings_of_scale_four_learn_together() -> None:
    adversarial = ADVERSARIAL | {"discriminator": {"kind": "stylegan2", "channels": [4, 4, 6, 8, 8]}}
    task = build(scale=4, **BOTH | {"adversarial": adversarial})
    assert task.reconstruct(batch(side=64).images).shape == (4, 3, 16, 16)
    before = weights(task)["upsampler"]
    for step in range(2):
        task.train_step([batch(side=64)], step)
    after = task.upsampler.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert {name.split(".")[1] for name in before} == {"0", "1"}


def test_micro_batches_take_the_step_of_the_whole_batch() -> None:
    # Not the weights: Adam's first step makes as much of the last bits of a gradient as of the first.
    whole, divided = build(**PLAIN), build(**PLAIN)
    first = whole.train_step([batch()], 0)
    second = divided.train_step([part(batch(), 0, 2), part(batch(), 2, 4)], 0)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-6)


def test_bf16_keeps_weights_and_losses_in_fp32() -> None:
    exact, mixed = build(**PLAIN), build(**PLAIN | {"precision": "bf16"})
    for step in range(2):
        first, second = exact.train_step([batch()], step), mixed.train_step([batch()], step)
        assert second["loss"].dtype == torch.float32
        assert second["loss"].item() == pytest.approx(first["loss"].item(), rel=1e-2)
    assert {weight.dtype for weight in mixed.upsampler.parameters()} == {torch.float32}


def test_evaluation_compares_the_averaged_weights_with_interpolation_over_uneven_batches() -> None:
    task, originals = build(**PLAIN), batch(3)
    task.ema.module.last_layer.data.fill_(0.2)
    metrics = task.evaluate([part(originals, 0, 2), part(originals, 2, 3)])
    seen = task.reconstruct(originals.images)
    for prefix, enlarged in (("", task.ema.module.upsample(seen)), ("bicubic_", bicubic(seen, 2))):
        assert metrics[f"{prefix}psnr"] == pytest.approx(psnr(enlarged, originals.images).mean().item(), rel=1e-5)
        assert metrics[f"{prefix}ssim"] == pytest.approx(ssim(enlarged, originals.images).mean().item(), rel=1e-4)
    assert metrics["psnr"] != metrics["bicubic_psnr"]
    with pytest.raises(ValueError, match="no validation image"):
        task.evaluate([])


def test_a_preview_shows_both_enlargements() -> None:
    sheet = build(**PLAIN).preview(batch(2))
    assert sheet.mode == "RGB"
    assert sheet.width > 4 * 32


def test_the_shipped_folder_has_the_averaged_weights(tmp_path: Path) -> None:
    task = build(**PLAIN | {"optimizer": {"learning_rate": 1e-2}, "ema": {"decay": 0.9}})
    for step in range(3):
        task.train_step([batch()], step)
    task.save_model(tmp_path)
    read = Upsampler.from_pretrained(tmp_path)
    assert read.trained_on == TrainedOn.of(task.image_tokenizer)
    assert read.note_on(task.image_tokenizer) == ""
    shipped = read.state_dict()
    averaged, trained = task.ema.module.state_dict(), task.upsampler.state_dict()
    assert all(torch.equal(shipped[name], averaged[name]) for name in averaged)
    assert any(not torch.equal(shipped[name], trained[name]) for name in trained)


def test_diagnosis_names_lost_numbers() -> None:
    task = build(**PLAIN)
    healthy = {"loss": 0.1, "gradient_norm": 0.4, "skipped_steps": 3.0, "run_share": 0.9}
    assert task.diagnose(healthy) == []
    cases = {
        "not finite: loss;": healthy | {"loss": math.nan},
        "6.0% of the steps had no finite gradient": healthy | {"skipped_share": 0.06},
    }
    known = {f"task.{field.name}" for field in describe_fields(UpsamplerTaskConfig)}
    for words, metrics in cases.items():
        (finding,) = task.diagnose(metrics)
        assert words in finding
        assert set(re.findall(r"task(?:\.\w+)+", finding)) <= known


def test_overfits_one_image_beyond_bicubic_interpolation() -> None:
    source = Shapes(ShapesConfig(), "train", 64)
    transform = ImageTransform(TransformConfig(image_size=64))
    image = Batch(transform(source[0].image, None)[None], [None], ["0"])
    optimizer = {"kind": "muon", "learning_rate": 1e-2, "momentum": 0.9, "nesterov": True, "schedule": {"warmup": 10}}
    settings = {"optimizer": optimizer, "ema": {"decay": 0.9}, "l1_weight": 1.0, "l2_weight": 4.0}
    steps = 150
    task = build(CoarseColors(), steps, **PLAIN | settings)
    fresh = task.evaluate([image])
    assert fresh["psnr"] == pytest.approx(fresh["bicubic_psnr"], abs=0.05)
    for step in range(steps):
        task.train_step([image], step)
    metrics = task.evaluate([image])
    assert metrics["psnr"] > metrics["bicubic_psnr"] + 4
    assert metrics["ssim"] > metrics["bicubic_ssim"] + 0.04


def run_of(folder: Path, tokenizer: Path, image_size: int = 32) -> TrainUpsamplerConfig:
    values = {
        "run_dir": str(folder),
        "image_tokenizer": str(tokenizer),
        "data": {
            "source": {"kind": "shapes", "train_size": 16, "val_size": 2},
            "transform": {"image_size": image_size, "crop": "random", "smallest_crop": 0.5},
            "batch_size": 2,
        },
        "model": MODEL,
        "task": BOTH | {"adversarial": ADVERSARIAL | {"r1_every": 2}, "ema": {"decay": 0.9}},
        "loop": {"steps": 4, "log_every": 3, "evaluate_every": 0, "preview_every": 0, "save_every": 0},
        "preview_images": 2,
    }
    return validate(TrainUpsamplerConfig, values, "test")


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights at the end, and the metrics without timings."""
    state = torch.load(folder / "checkpoints" / "step-0000004" / "state.pt", weights_only=True)
    records = RunFolder(folder).read_metrics()
    timings = ("seconds", "images_per_second")
    return state, [{name: value for name, value in record.items() if name not in timings} for record in records]


def test_a_run_that_was_stopped_gives_the_run_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert train(run_of(tmp_path / "straight", tmp_path / "tokenizer"))
    should_stop = TrainingLoop._should_stop

    def stopping(loop: TrainingLoop, done: int) -> bool:
        loop._stop.made |= done == 2 and not (tmp_path / "stopped" / "checkpoints").exists()
        return should_stop(loop, done)

    monkeypatch.setattr(TrainingLoop, "_should_stop", stopping)
    assert not train(run_of(tmp_path / "stopped", tmp_path / "tokenizer"))
    torch.manual_seed(12345)
    assert train(run_of(tmp_path / "stopped", tmp_path / "tokenizer"))
    (state, records), (other_state, other_records) = (results(tmp_path / name) for name in ("straight", "stopped"))
    assert records == other_records
    assert state.keys() == other_state.keys() >= {"upsampler", "ema", "optimizer", "discriminator"}
    for name in ("upsampler", "ema", "discriminator"):
        assert all(torch.equal(weight, other_state[name][key]) for key, weight in state[name].items())
    assert not torch.equal(state["upsampler"]["doublings.0.tail.gain"], torch.zeros(12, 1, 1, 1))


def test_images_must_be_as_large_as_the_tokenizers_times_the_scale(tmp_path: Path) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"image_size is 64, but .* have 16 pixels, and 2 times as many are 32"):
        train(run_of(tmp_path / "run", tmp_path / "tokenizer", image_size=64))
    assert not (tmp_path / "run").exists()
