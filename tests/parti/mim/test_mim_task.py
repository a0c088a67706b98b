"""The task: what counts in its loss, its metrics beside constants, its masks, previews, and resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from parti.mim import train_mim
from parti.mim.mim_task import ClassTask, MaskedImageTask
from parti.objectives import OBJECTIVES
from tests.parti.mim.tiny_mim import NETWORKS, pixels, tiny_mim_task
from tests.tiny import tiny_image_tokenizer
from vqgan.config.schema import ConfigError, validate
from vqgan.data.batch import Batch
from vqgan.training.run_folder import RunFolder

METHODS = {"mae": "masked_mse", "simmim": "masked_l1", "beit": "masked_nats", "mpp": "masked_nats"}


def batch(count: int = 6, seed: int = 0) -> Batch:
    return Batch(pixels(count, seed=seed), [None] * count, [f"image {number}" for number in range(count)])


def task(name: str, **settings: object) -> MaskedImageTask:
    return tiny_mim_task(name, Accelerator(), **settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_that_of_masked_patches_alone(name: str) -> None:
    """A loop over images and patches gives the same."""
    one = task(name)
    (part,) = one.parts([batch()], step=3)
    loss, _ = one.loss(part, 3)
    total, count, place = torch.zeros(()), 0, 0
    outputs = one.network(part.images, *part.masks)
    for row in range(6):
        for patch in range(part.masks[0].shape[1]):
            if not part.masks[0][row, patch]:
                continue
            if isinstance(one, ClassTask):
                total = total + F.cross_entropy(outputs[place], one.targets(part.images)[row, patch])
            else:
                difference = outputs[row, patch] - one.network.targets(part.images)[row, patch]
                total = total + (difference.square() if name == "mae" else difference.abs()).mean()
            count, place = count + 1, place + 1
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_are_functions_of_step_and_row_and_of_a_validation_images_name(name: str) -> None:
    one = task(name)
    masks = one.parts([batch()], 0)[0].masks
    halves = one.parts([batch(3), batch(3)], 0)
    assert all(torch.equal(whole[:3], part) for whole, part in zip(masks, halves[0].masks, strict=True))
    assert all(torch.equal(whole[3:], part) for whole, part in zip(masks, halves[1].masks, strict=True))
    assert not torch.equal(masks[0], one.parts([batch()], 1)[0].masks[0])
    val = one.val_masks(batch())[0]
    assert torch.equal(one.val_masks(Batch(pixels(2), [None] * 2, ["image 4", "image 1"]))[0], val[[4, 1]])


@pytest.mark.parametrize("name", NETWORKS)
def test_metrics_do_not_depend_on_how_validation_is_divided(name: str) -> None:
    one = task(name)
    whole, random_state = batch(7), torch.get_rng_state()
    parts = [
        Batch(whole.images[rows], [None] * len(whole.names[rows]), whole.names[rows])
        for rows in (slice(0, 3), slice(3, 4), slice(4, 7))
    ]
    metrics = one.evaluate([whole])
    assert one.evaluate(parts) == pytest.approx(metrics, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(ValueError, match="no validation image"):
        one.evaluate([])


def masked_pixels(one: MaskedImageTask, whole: Batch) -> Tensor:
    masks = one.val_masks(whole)
    return one.network.targets(whole.images)[masks[0]].unflatten(-1, (-1, 3)).flatten(0, 1)


def test_constant_metrics_are_those_of_the_best_color() -> None:
    levels = ((pixels(7) + 1) * 127.5).round() / 127.5 - 1  # what images of 8 bits have
    whole = Batch(levels, [None] * 7, batch(7).names)
    simmim, plain = task("simmim"), task("simmim")
    colors = masked_pixels(simmim, whole)
    median = (colors - colors.median(0).values).abs().mean()
    assert simmim.evaluate([whole])["constant_l1"] == pytest.approx(median.item(), rel=1e-3)
    assert plain.evaluate([whole])["constant_l1"] <= (colors - colors.mean(0)).abs().mean().item() + 1e-4
    mae = task("mae")
    colors = masked_pixels(mae, whole)
    assert mae.evaluate([whole])["constant_mse"] == pytest.approx(
        (colors - colors.mean(0)).square().mean().item(), rel=1e-4
    )


def test_class_metrics_by_hand() -> None:
    one, whole = task("mpp"), batch(7)
    classes = one.targets(whole.images)[one.val_masks(whole)[0]]
    frequent = classes.mode().values
    with torch.no_grad():
        for weight in one.ema.module.head.parameters():
            weight.zero_()
        one.ema.module.head.bias[frequent] = 5.0
    metrics = one.evaluate([whole])
    share = (classes == frequent).float().mean().item()
    assert metrics["masked_accuracy"] == metrics["constant_accuracy"] == pytest.approx(share)
    assert metrics["rare_accuracy"] == 0
    counts = classes.bincount(minlength=512).float()
    shares = counts[counts > 0] / counts.sum()
    assert metrics["unigram_nats"] == pytest.approx(-(shares * shares.log()).sum().item(), rel=1e-5)
    nats = math.log(511 + math.e**5) - 5 * share
    assert metrics["masked_nats"] == pytest.approx(nats, rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_a_fixed_batch(name: str) -> None:
    one = task(name, optimizer={"learning_rate": 3e-3}, ema={"decay": 0.5})
    flat = batch(4).images[:, :, :1, :1].expand(4, 3, 32, 32).contiguous()
    same = Batch(flat, [None] * 4, ["a", "b", "c", "d"])
    losses = [one.train_step([same], step)["loss"].item() for step in range(10)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_previews_keep_what_is_seen(name: str) -> None:
    one, whole = task(name), batch(2)
    masks = one.val_masks(whole)
    assert one.preview(whole).size[0] > 3 * 32
    if name in ("mae", "simmim", "simmim_vit"):
        predicted = one.reconstruct(whole.images, masks)
        seen = ~one._on_pixels(masks[0]).expand_as(predicted)
        assert torch.equal(predicted[seen], whole.images[seen])
        assert not torch.equal(predicted, whole.images)
    assert one.preview_label == ("predicted, in the true means and deviations" if name == "mae" else "predicted")


def test_no_masked_patch_gives_no_nan() -> None:
    """unilm#551: an empty set of labels."""
    one = task("beit")
    (part,) = one.parts([batch()], 0)
    empty = part._replace(
        masks=(torch.zeros_like(part.masks[0]),), weight=one.learner.weight_of_each([torch.tensor(0)])
    )
    loss, _ = one.loss(empty, 0)
    loss.backward()
    assert loss.item() == 0


VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "mae": {"encoder": VIT, "decoder": {"width": 16, "depth": 1, "heads": 2}},
    "simmim": {"encoder": {"kind": "vit"} | VIT, "mask_size": 8},
    "beit": {"encoder": VIT | {"drop_path": 0.1}, "masked_patches": 6, "smallest_block": 2},
    "mpp": {"encoder": VIT},
}


def run(name: str, folder: Path, tokenizer: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "objective": name,
        "run_dir": str(folder),
        "data": {
            "source": {"kind": "shapes", "train_size": 40, "val_size": 8},
            "transform": {"image_size": 32},
            "batch_size": 8,
        },
        "model": MODELS[name],
        "task": {"optimizer": {"learning_rate": 1e-3}, "ema": {"decay": 0.9}},
        "loop": {"steps": 6, "log_every": 2, "evaluate_every": 3, "preview_every": 0, "save_every": 3},
        "preview_images": 2,
    }
    if name == "beit":
        values |= {"image_tokenizer": str(tokenizer), "target_size": 16}
    return validate(OBJECTIVES[name].config_type, values | changes, "test")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_image_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_bit_for_bit(name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert train_mim.train(run(name, whole, tokenizer))
    train_step = MaskedImageTask.train_step

    def stopped(self: MaskedImageTask, batches: Any, step: int) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return train_step(self, batches, step)

    monkeypatch.setattr(MaskedImageTask, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_mim.train(run(name, parted, tokenizer))
    monkeypatch.setattr(MaskedImageTask, "train_step", train_step)
    assert train_mim.train(run(name, parted, tokenizer))
    found, expected = (RunFolder(folder).read_metrics() for folder in (parted, whole))
    timings = ("seconds", "images_per_second")
    for records in (found, expected):
        for record in records:
            assert all(record.pop(timing, None) is None or True for timing in timings)
    assert found == expected
    assert METHODS[name] in expected[-1] or METHODS[name] in expected[-2]
    assert (whole / "model" / "model.safetensors").read_bytes() == (parted / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_a_shipped_model_opens_again(name: str, tokenizer: Path, tmp_path: Path) -> None:
    config = run(name, tmp_path, tokenizer)
    one = train_mim.build_task(config, Accelerator())
    one.save_model(tmp_path / "model")
    again = type(one.network).from_pretrained(tmp_path)
    for key, weight in one.ema.module.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)


def test_codes_of_another_grid_are_one_clear_error(tokenizer: Path, tmp_path: Path) -> None:
    config = run("beit", tmp_path, tokenizer, target_size=32)
    with pytest.raises(
        ConfigError, match=r"8x8 codes of 32 pixels, and the encoder has 4x4 patches.* set target_size to 16"
    ):
        train_mim.build_task(config, Accelerator())


def test_sizes_that_differ_are_one_clear_error(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.transform.image_size 64 and model.encoder.image_size 32 differ"):
        run("mae", tmp_path, tokenizer, data={"transform": {"image_size": 64}})
