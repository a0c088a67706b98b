"""Evaluates an inpainter: fills in each side of validation pairs with and without the other, during training and in
`tools/evaluate.py inpainter`."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from parti.fused.inpainting.corruption import CorruptedPair, CorruptionConfig, corrupt, mask_words
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.losses import inpainting_distances
from parti.fused.inpainting.shapes_probe import color_words, first_objects, hole_colors, visible_words
from parti.text.masked_tokens import score_masked_tokens
from vqgan.data.batch import Batch
from vqgan.metrics.sums import MetricSums

VAL_STEP = 0
"""Every evaluation corrupts its pairs with the random numbers of this step."""


@torch.no_grad()
def evaluate_inpainter(
    inpainter: Inpainter,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    corruption: CorruptionConfig,
    seed: int,
    shapes: bool,
) -> dict[str, float]:
    """Returns how well each side is filled in, with the other side and without it.

    hole_l1: mean absolute difference in large holes, images in [0, 1], with the image's caption and with that of
    another image. word_accuracy: long spans, with the image and with a gray one. With `shapes` also hole_color (a
    removed object gets its color back), color_words (predicted, one masked at a time) and both_color_words (both
    masked). `batches` are those of this process; the metrics are those of all processes. Raises ValueError if no
    process has an image.
    """
    sums = MetricSums(accelerator)
    for batch in batches:
        _add_holes(inpainter, batch, _only(corruption, mostly_image=1.0), seed, sums)
        _add_words(inpainter, batch, _only(corruption, mostly_caption=1.0), seed, sums)
        if shapes:
            _add_shapes(inpainter, batch, sums)
    totals = sums.totals()
    if not totals:
        raise ValueError("no validation image to evaluate on; give at least one batch")
    return {name: (total[0] / total[1].clamp(min=1)).item() for name, total in totals.items()}


def corrupt_batch(
    inpainter: Inpainter, batch: Batch, config: CorruptionConfig, seed: int, step: int, start: int
) -> CorruptedPair:
    """Returns the corruption of a batch that begins at row `start` of a step, on the batch's device."""
    ids = inpainter.tokenizer.encode(batch.texts())
    lost = corrupt(ids, inpainter.image_size, inpainter.words, config, seed=seed, step=step, start=start)
    return lost.to(batch.images.device)


def _add_holes(inpainter: Inpainter, batch: Batch, config: CorruptionConfig, seed: int, sums: MetricSums) -> None:
    holes, text = corrupt_batch(inpainter, batch, config, seed, VAL_STEP, 0)
    nothing = torch.zeros_like(text.chosen)
    for name, ids in (("hole_l1", text.whole), ("hole_l1_wrong_caption", text.whole.roll(1, 0))):
        filled = inpainter.fill(batch.images, holes, ids, nothing).images
        distance = inpainting_distances(filled, batch.images, holes).hole * batch.images.numel()
        sums.add(name, torch.stack([distance, holes.sum() * 3.0]))


def _add_words(inpainter: Inpainter, batch: Batch, config: CorruptionConfig, seed: int, sums: MetricSums) -> None:
    _, text = corrupt_batch(inpainter, batch, config, seed, VAL_STEP, 0)
    ids = mask_words(text, inpainter.network.trunk.parts.tokens.mask_id)
    gray = torch.zeros_like(batch.images)
    for name, images in (("word_accuracy", batch.images), ("word_accuracy_without_image", gray)):
        predicted = score_masked_tokens(inpainter.network.eval()(images, ids, text.chosen).logits, text)
        sums.add(name, torch.stack([predicted.correct, predicted.total]))


def _add_shapes(inpainter: Inpainter, batch: Batch, sums: MetricSums) -> None:
    captions, objects = batch.texts(), first_objects(batch)
    for name, texts in (("hole_color", captions), ("hole_color_wrong_caption", captions[-1:] + captions[:-1])):
        sums.add(name, torch.stack(hole_colors(inpainter, batch, texts, objects)))
    if not visible_words(inpainter.masked_captions):
        return
    gray = torch.zeros_like(batch.images)
    for name, images in (("color_words", batch.images), ("color_words_without_image", gray)):
        sums.add(name, torch.stack(color_words(inpainter, batch, images)))
    both = color_words(inpainter, batch, batch.images, alone=False)
    sums.add("both_color_words", torch.stack(both))


def _only(config: CorruptionConfig, mostly_image: float = 0.0, mostly_caption: float = 0.0) -> CorruptionConfig:
    """Returns `config` with only one kind of corruption."""
    return config.model_copy(update={"mostly_image": mostly_image, "mostly_caption": mostly_caption})
