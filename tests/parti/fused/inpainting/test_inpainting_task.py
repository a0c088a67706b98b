"""The pretraining task: its losses by formula, that it learns and resumes, its metrics, the folder that it ships."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from parti.fused.inpainting.corruption import corrupt, mask_images, mask_words
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.inpainting_task import InpaintingTask, InpaintingTaskConfig
from parti.fused.inpainting.losses import inpainting_distances
from parti.fused.inpainting.masked_captions import MaskedCaptionReader
from parti.fused.inpainting.network import InpaintingNetwork, composite
from parti.fused.inpainting.shapes_probe import color_at, color_words, first_objects, hole_colors
from parti.fused.inpainting.train_inpainting import TrainInpaintingConfig, train
from parti.fused.text_side import text_space
from parti.text.masked_tokens import Words
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.parti.fused.tiny_trunk import TRUNK, random_images, with_opinions
from tests.tiny import CAPTIONS, pairs, tiny_text_tokenizer
from tests.tiny_text_models import write_bert
from vqgan.config.schema import ConfigError, describe_fields, validate
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import ImageTransform, TransformConfig, to_pil
from vqgan.data.sources.shapes import COLORS, Shapes, ShapesConfig, parse_caption
from vqgan.hub.model_folder import ModelFolderError
from vqgan.training.loop import TrainingLoop
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

pytestmark = pytest.mark.slow_threads

TOKENIZER = tiny_text_tokenizer()
ADVERSARIAL = {
    "weight": 0.1,
    "loss": "hinge",
    "discriminator": {"kind": "patchgan", "base_channels": 4, "layers": 1},
    "optimizer": {"learning_rate": 1e-3},
    "r1_gamma": 0.0,
}
PLAIN = {"perceptual": {"weight": 0.0}, "precision": "fp32", "bert_lr_ratio": 1.0}
MODEL = TRUNK.model_dump(mode="json")


def network() -> InpaintingNetwork:
    torch.manual_seed(0)
    model = InpaintingNetwork(TRUNK, text_space(TOKENIZER))
    with_opinions(model)
    return model


def build(steps: int = 10, shapes: bool = False, **settings: Any) -> InpaintingTask:
    config = validate(InpaintingTaskConfig, PLAIN | settings, "test")
    return InpaintingTask(config, network(), TOKENIZER, build_accelerator(), steps, seed=0, shapes=shapes)


def part(whole: Batch, start: int, stop: int) -> Batch:
    return Batch(whole.images[start:stop], whole.captions[start:stop], whole.names[start:stop])


def weights(task: InpaintingTask) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in task.network.state_dict().items()}


def test_the_distances_by_their_formula() -> None:
    images, generated = random_images(2, 4), random_images(2, 4, seed=1)
    holes = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    holes[0, 0, :2, 1:] = True
    hole, valid = 0.0, 0.0
    for row in range(2):
        for y in range(4):
            for x in range(4):
                difference = (generated[row, :, y, x] - images[row, :, y, x]).abs().sum().item() / 2
                hole += difference * bool(holes[row, 0, y, x])
                valid += difference * (not holes[row, 0, y, x])
    distances = inpainting_distances(generated, images, holes)
    assert distances.hole.item() == pytest.approx(hole / (2 * 3 * 16), rel=1e-5)
    assert distances.valid.item() == pytest.approx(valid / (2 * 3 * 16), rel=1e-5)
    whole = composite(generated, images, holes)
    assert torch.equal(whole[0, :, :2, 1:], generated[0, :, :2, 1:])
    assert torch.equal(whole[1], images[1])


def test_the_total_is_the_sum_of_its_terms() -> None:
    task = build(hole_weight=6.0, visible_weight=0.5, text_weight=2.0, adversarial=ADVERSARIAL)
    batch = pairs(8)
    with torch.no_grad():
        ids = TOKENIZER.encode(batch.texts())
        lost = corrupt(ids, 16, Words(TOKENIZER), task.config.corruption, seed=0, step=4, start=0)
        read = mask_words(lost.text, TOKENIZER.vocab_size)
        completed = task.network(mask_images(batch.images, lost.holes), read, lost.text.chosen)
    words = F.cross_entropy(completed.logits, ids[lost.text.chosen])
    distances = inpainting_distances(completed.images, batch.images, lost.holes)
    metrics = task.train_step([batch], 4)
    assert metrics["loss_hole"].item() == pytest.approx(6 * distances.hole.item(), rel=1e-4)
    assert metrics["loss_valid"].item() == pytest.approx(0.5 * distances.valid.item(), rel=1e-4)
    assert metrics["loss_words"].item() == pytest.approx(2 * words.item(), rel=1e-4)
    terms = sum(metrics[f"loss_{name}"].item() for name in ("hole", "valid", "words", "adversarial"))
    assert metrics["loss"].item() == pytest.approx(terms, rel=1e-5)
    assert all(metric.isfinite() and not metric.requires_grad for metric in metrics.values())


def test_the_perceptual_distance_is_of_the_completed_image() -> None:
    """Which is the image itself where nothing is missing."""
    perceptual = {"weight": 0.1, "backbone": "squeeze", "weights": "random"}
    torch.manual_seed(0)
    config = validate(InpaintingTaskConfig, PLAIN | {"perceptual": perceptual}, "test")
    larger = TRUNK.model_copy(update={"image_size": 32})
    model = InpaintingNetwork(larger, text_space(TOKENIZER))
    for share, expected in ((1.0, 0.0), (0.0, None)):
        corruption = config.corruption.model_copy(update={"mostly_caption": share, "mostly_image": 1 - share})
        changed = config.model_copy(update={"corruption": corruption})
        task = InpaintingTask(changed, model, TOKENIZER, build_accelerator(), 5, seed=0)
        batch = Batch(random_images(2, 32), ["a red cat", "a blue dog"], ["0", "1"])
        loss = task.train_step([batch], 0)["loss_perceptual"].item()
        assert loss > 1e-4 if expected is None else loss == pytest.approx(expected, abs=1e-7)


def test_the_discriminator_joins_when_it_should() -> None:
    task = build(adversarial=ADVERSARIAL | {"start": 1})
    assert task.discriminator_trainer is not None
    before = {name: weight.clone() for name, weight in task.discriminator_trainer.discriminator.state_dict().items()}
    assert "loss_adversarial" not in task.train_step([pairs(8)], 0)
    assert all(
        torch.equal(w, before[name]) for name, w in task.discriminator_trainer.discriminator.state_dict().items()
    )
    assert {"loss_adversarial", "loss_discriminator"} <= task.train_step([pairs(8)], 1).keys()
    assert any(
        not torch.equal(w, before[name]) for name, w in task.discriminator_trainer.discriminator.state_dict().items()
    )


def test_micro_batches_take_the_step_of_the_whole_batch() -> None:
    whole, divided = build(), build()
    first = whole.train_step([pairs(8)], 0)
    second = divided.train_step([part(pairs(8), 0, 4), part(pairs(8), 4, 8)], 0)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-5)


def test_bert_learns_at_its_own_rate_and_nothing_moves_where_a_gradient_is_lost() -> None:
    """With Adam a first step is as long as the rate says."""
    task = build(bert_lr_ratio=0.1, optimizer={"learning_rate": 1e-3, "weight_decay": 0.0})
    before = weights(task)
    metrics = task.train_step([pairs(8)], 0)
    after = weights(task)
    low_lr = re.compile(r"trunk\.parts\.(text|embeddings)\.")
    for name, weight in after.items():
        longest = (weight - before[name]).abs().max().item()
        assert longest <= (1e-4 if low_lr.match(name) else 1e-3) * 1.01, name
        assert longest > 0 or name.endswith("key.bias"), name  # a softmax does not see it
    assert metrics["learning_rate"].item() == pytest.approx(1e-3)

    infinite = pairs(8)
    infinite.images[0] = math.inf
    assert task.train_step([infinite], 1)["skipped"] == 1
    assert all(torch.equal(weight, after[name]) for name, weight in task.network.state_dict().items())
    assert all(parameter.grad is None for parameter in task.network.parameters())


def test_bf16_keeps_weights_and_losses_in_fp32() -> None:
    exact, mixed = build(), build(precision="bf16")
    first, second = exact.train_step([pairs(8)], 0), mixed.train_step([pairs(8)], 0)
    assert second["loss"].dtype == torch.float32
    assert second["loss"].item() == pytest.approx(first["loss"].item(), rel=5e-2)
    assert {weight.dtype for weight in mixed.network.parameters()} == {torch.float32}


def test_it_overfits_a_batch_of_eight() -> None:
    """Words by the image, holes by the caption: each image is of one color."""
    colors = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch, steps = Batch(colors.expand(8, 3, 16, 16), [*CAPTIONS], [*CAPTIONS]), 150
    optimizer = {"learning_rate": 8e-3, "clip_norm": 1.0, "schedule": {"warmup": 5}}
    # What is left of an image would tell which of the eight it is: nearly nothing is.
    corruption = {"mostly_image": 0.4, "mostly_caption": 0.5, "large_hole": 0.97}
    task = build(steps, optimizer=optimizer, ema={"decay": 0.9}, corruption=corruption, bert_lr_ratio=0.3)
    for step in range(steps):
        task.train_step([batch], step)
    metrics = task.evaluate([batch])
    assert metrics["word_accuracy"] > 0.95
    assert metrics["word_accuracy"] > metrics["word_accuracy_without_image"] + 0.2
    assert metrics["hole_l1"] < 0.75 * metrics["hole_l1_wrong_caption"]


def test_evaluation_takes_uneven_batches_and_refuses_none() -> None:
    task = build()
    whole = task.evaluate([pairs(6)])
    assert set(whole) == {"hole_l1", "hole_l1_wrong_caption", "word_accuracy", "word_accuracy_without_image"}
    assert set(task.evaluate([part(pairs(6), 0, 4), part(pairs(6), 4, 6)])) == set(whole)
    assert task.evaluate([pairs(6)]) == whole
    with pytest.raises(ValueError, match="no validation image"):
        task.evaluate([])


def shapes_batch(count: int, side: int = 64) -> Batch:
    source, transform = Shapes(ShapesConfig(), "val", side), ImageTransform(TransformConfig(image_size=side))
    samples = [source[index] for index in range(count)]
    images = torch.stack([transform(sample.image, None) for sample in samples])
    return Batch(images, [sample.caption for sample in samples], [sample.name for sample in samples])


class AttentionOutput(Inpainter):
    """Fills holes with the color that a caption names first, and blanks with the words of `answers`."""

    answers: Tensor

    def fill(self, images: Tensor, holes: Tensor, ids: Tensor, masked_captions: Tensor) -> Any:
        generated = torch.ones_like(images)
        for row, caption in enumerate(self.tokenizer.decode(ids)):
            color = next((word for word in caption.split() if word in COLORS), None)
            if color is not None:
                generated[row] = (torch.tensor(COLORS[color]) / 127.5 - 1)[:, None, None]
        predicted = ids.clone()
        if masked_captions.any():
            predicted[masked_captions] = self.answers[masked_captions]
        return type(super().fill(images, holes, ids, masked_captions))(composite(generated, images, holes), predicted)


def test_the_probe_of_shapes_asks_what_it_says() -> None:
    batch = shapes_batch(24)
    tokenizer = TextTokenizer.train(batch.texts() * 4, TextTokenizerConfig(vocab_size=400, length=16))
    model = InpaintingNetwork(TRUNK.model_copy(update={"image_size": 64}), text_space(tokenizer))
    predicted = AttentionOutput(model, tokenizer)
    objects = first_objects(batch)
    found = [(thing, parse_caption(text).first) for thing, text in zip(objects, batch.texts(), strict=True) if thing]
    assert len(found) >= 20
    assert all(thing.color == named.color for thing, named in found)
    images_of = to_pil(batch.images)
    assert all(
        color_at(image, thing.box) == thing.color for image, thing in zip(images_of, objects, strict=True) if thing
    )
    right, asked = hole_colors(predicted, batch, batch.texts(), objects)
    assert right == asked == len(found)
    wrong, _ = hole_colors(predicted, batch, ["a red x"] * 24, objects)
    assert wrong == sum(thing.color == "red" for thing, _ in found)
    predicted.answers = tokenizer.encode(batch.texts())
    for alone in (True, False):
        right, asked = color_words(predicted, batch, batch.images, alone=alone)
        assert right == asked == 48
    predicted.answers = torch.full_like(
        predicted.answers, int(MaskedCaptionReader(tokenizer, text_space(tokenizer)).pieces("red"))
    )
    right, _ = color_words(predicted, batch, batch.images)
    assert right == sum(text.split().count("red") for text in batch.texts())


def test_metrics_on_shapes() -> None:
    task = build(shapes=True)
    batch = shapes_batch(4, 16)
    metrics = task.evaluate([batch])
    assert {"hole_color", "hole_color_wrong_caption"} <= metrics.keys()
    assert "color_words" not in metrics  # the tiny vocabulary has no token for each


def test_a_preview_shows_what_is_given_and_what_is_made_of_it() -> None:
    sheet = build().preview(pairs(3))
    assert sheet.mode == "RGB"
    assert sheet.width > 6 * 16


def test_diagnosis_names_lost_numbers() -> None:
    task = build()
    healthy = {"loss": 0.1, "gradient_norm": 0.4, "skipped_steps": 3.0, "run_share": 0.9}
    assert task.diagnose(healthy) == []
    known = {f"task.{field.name}" for field in describe_fields(InpaintingTaskConfig)}
    for words, metrics in (("not finite: loss;", {"loss": math.nan}), ("6.0% of the steps", {"skipped_share": 0.06})):
        (finding,) = task.diagnose(healthy | metrics)
        assert words in finding
        assert set(re.findall(r"task(?:\.\w+)+", finding)) <= known


def test_the_shipped_folder_completes_as_the_averaged_network(tmp_path: Path) -> None:
    task = build(optimizer={"learning_rate": 1e-2}, ema={"decay": 0.9})
    for step in range(3):
        task.train_step([pairs(8)], step)
    task.save_model(tmp_path / "model")
    shipped = Inpainter.from_pretrained(tmp_path)
    averaged = task.ema.module.state_dict()
    assert all(torch.equal(weight, averaged[name]) for name, weight in shipped.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in shipped.network.parameters())
    images, holes = random_images(2), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    holes[0, :, 4:9, 3:] = True
    ids, masked_captions = shipped.masked_captions.read(["a [MASK] cat", "a red dog"])
    filled, expected = (
        shipped.fill(images, holes, ids, masked_captions),
        task.inpainter.fill(images, holes, ids, masked_captions),
    )
    assert torch.equal(filled.images, expected.images)
    assert torch.equal(filled.ids, expected.ids)
    keep = ~holes.expand_as(images)
    assert torch.equal(filled.images[keep], images[keep])
    assert torch.equal(filled.ids[~masked_captions], ids[~masked_captions])
    assert filled.ids[masked_captions] < TOKENIZER.vocab_size
    assert filled.ids[masked_captions] != TOKENIZER.pad_id


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json is missing"):
        Inpainter.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "upsampler"}))
    with pytest.raises(ModelFolderError, match="holds no inpainting model"):
        Inpainter.from_pretrained(tmp_path)


def run_of(folder: Path, **changes: Any) -> TrainInpaintingConfig:
    values: dict[str, Any] = {
        "run_dir": str(folder),
        "data": {
            "source": {"kind": "shapes", "train_size": 16, "val_size": 4},
            "transform": {"image_size": 16, "crop": "random", "smallest_crop": 0.5},
            "batch_size": 4,
        },
        "text": {"vocab_size": 300, "length": 20, "training_captions": 16},
        "model": MODEL | {"text": MODEL["text"] | {"dropout": 0.2}},
        "task": PLAIN | {"adversarial": ADVERSARIAL | {"start": 1}, "ema": {"decay": 0.9}, "bert_lr_ratio": 0.5},
        "loop": {"steps": 4, "log_every": 3, "evaluate_every": 0, "preview_every": 0, "save_every": 0},
        "preview_images": 2,
    }
    return validate(TrainInpaintingConfig, values | changes, "test")


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights at the end, and the metrics without timings."""
    state = torch.load(folder / "checkpoints" / "step-0000004" / "state.pt", weights_only=True)
    timings = ("seconds", "images_per_second")
    records = RunFolder(folder).read_metrics()
    return state, [{name: value for name, value in record.items() if name not in timings} for record in records]


def test_a_run_that_was_stopped_gives_the_run_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(run_of(tmp_path / "straight"))
    should_stop = TrainingLoop._should_stop

    def stopping(loop: TrainingLoop, done: int) -> bool:
        loop._stop.made |= done == 2 and not (tmp_path / "stopped" / "checkpoints").exists()
        return should_stop(loop, done)

    monkeypatch.setattr(TrainingLoop, "_should_stop", stopping)
    assert not train(run_of(tmp_path / "stopped"))
    torch.manual_seed(12345)
    assert train(run_of(tmp_path / "stopped"))
    (state, records), (other_state, other_records) = (results(tmp_path / name) for name in ("straight", "stopped"))
    assert records == other_records
    assert state.keys() == other_state.keys() >= {"network", "ema", "optimizer", "discriminator"}
    for name in ("network", "ema", "discriminator"):
        assert all(torch.equal(weight, other_state[name][key]) for key, weight in state[name].items())
    assert (tmp_path / "straight" / "samples" / "step-0000004.png").is_file()

    # Another run starts from it: with its vocabulary and all of its parts.
    start = str(tmp_path / "straight")
    next_run = run_of(tmp_path / "next", start_from=start, text={"kind": "saved", "folder": start})
    first = next_run.model_copy(update={"loop": next_run.loop.model_copy(update={"steps": 1})})
    assert train(first)
    begun = torch.load(tmp_path / "next" / "checkpoints" / "step-0000001" / "state.pt", weights_only=True)["network"]
    shipped = Inpainter.from_pretrained(start).network.state_dict()
    moved = [name for name, weight in shipped.items() if (begun[name] - weight).abs().max() > 1e-3]
    assert all(name.startswith("head.") for name in moved)


def test_a_run_starts_from_a_bert_with_its_own_tokenizer(tmp_path: Path) -> None:
    bert = str(write_bert(tmp_path / "bert"))
    text_side = {"width": 24, "heads": 2, "mlp_width": 32, "bert": bert}
    config = run_of(
        tmp_path / "run",
        text={"kind": "pretrained", "name": bert, "length": 24},
        model=MODEL | {"text": text_side},
        loop={"steps": 1, "evaluate_every": 0, "preview_every": 0, "save_every": 0},
    )
    assert train(config)
    (tmp_path / "bert").rename(tmp_path / "gone")  # the folder that it ships has everything
    inpainter = Inpainter.from_pretrained(tmp_path / "run")
    ids, masked_captions = inpainter.masked_captions.read(["a [MASK] cat"])
    assert inpainter.fill(
        random_images(1), torch.ones(1, 1, 16, 16, dtype=torch.bool), ids, masked_captions
    ).ids.shape == (1, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": "there"}, "set text.kind to saved and text.folder to 'there'"),
        (
            {"model": MODEL | {"text": MODEL["text"] | {"bert": "b"}}},
            "set text.kind to pretrained and text.name to 'b'",
        ),
        ({"model": MODEL | {"image_size": 32}}, r"image_size 16 and model\.image_size 32 differ; set both to the same"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "run", **changes)
