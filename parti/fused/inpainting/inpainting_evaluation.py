"""Each side of held-out pairs filled in with and without the other: while a network trains, and when
`tools/evaluate.py inpainter` measures it."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from parti.fused.inpainting.corruption import CorruptionConfig, Holed, corrupt, hidden_behind
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.inpainting_losses import hole_distances
from parti.fused.inpainting.shapes_probe import colour_words, first_objects, hole_colours, tellable
from parti.text_warm_up.masked import tell
from vqgan.data.batch import Batch
from vqgan.metrics.sums import MetricSums

HELD_OUT_STEP = 0
"""Held-out pairs lose what they would at this step, at every evaluation."""


@torch.no_grad()
def evaluate_inpainter(
    inpainter: Inpainter,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    corruption: CorruptionConfig,
    seed: int,
    shapes: bool,
) -> dict[str, float]:
    """What each side is filled with, beside the other side and without it.

    hole_l1: mean absolute difference in large holes, pictures in [0, 1], with the picture's caption and with that of
    another picture. word_accuracy: long spans, with the picture and with a grey one. With `shapes` also hole_colour (a
    cut-out object has its colour again), colour_words (told, each hidden alone) and both_colour_words (hidden at once).
    `batches` are this process's share; the figures are those of all processes. Raises ValueError where no process has
    a picture.
    """
    sums = MetricSums(accelerator)
    for batch in batches:
        _add_holes(inpainter, batch, _only(corruption, mostly_picture=1.0), seed, sums)
        _add_words(inpainter, batch, _only(corruption, mostly_caption=1.0), seed, sums)
        if shapes:
            _add_shapes(inpainter, batch, sums)
    totals = sums.totals()
    if not totals:
        raise ValueError("no held-out picture to evaluate on; give at least one batch")
    return {name: (total[0] / total[1].clamp(min=1)).item() for name, total in totals.items()}


def lose(inpainter: Inpainter, batch: Batch, config: CorruptionConfig, seed: int, step: int, start: int) -> Holed:
    """What a batch that begins at row `start` of a step loses, on the batch's device."""
    ids = inpainter.tokenizer.encode(batch.texts())
    lost = corrupt(ids, inpainter.image_size, inpainter.words, config, seed=seed, step=step, start=start)
    return lost.to(batch.images.device)


def _add_holes(inpainter: Inpainter, batch: Batch, config: CorruptionConfig, seed: int, sums: MetricSums) -> None:
    holes, text = lose(inpainter, batch, config, seed, HELD_OUT_STEP, 0)
    nothing = torch.zeros_like(text.chosen)
    for name, ids in (("hole_l1", text.whole), ("hole_l1_wrong_caption", text.whole.roll(1, 0))):
        filled = inpainter.fill(batch.images, holes, ids, nothing).images
        distance = hole_distances(filled, batch.images, holes).hole * batch.images.numel()
        sums.add(name, torch.stack([distance, holes.sum() * 3.0]))


def _add_words(inpainter: Inpainter, batch: Batch, config: CorruptionConfig, seed: int, sums: MetricSums) -> None:
    _, text = lose(inpainter, batch, config, seed, HELD_OUT_STEP, 0)
    ids = hidden_behind(text, inpainter.network.trunk.parts.tokens.mask_id)
    grey = torch.zeros_like(batch.images)
    for name, images in (("word_accuracy", batch.images), ("word_accuracy_without_picture", grey)):
        told = tell(inpainter.network.eval()(images, ids, text.chosen).logits, text)
        sums.add(name, torch.stack([told.right, told.asked]))


def _add_shapes(inpainter: Inpainter, batch: Batch, sums: MetricSums) -> None:
    captions, objects = batch.texts(), first_objects(batch)
    for name, texts in (("hole_colour", captions), ("hole_colour_wrong_caption", captions[-1:] + captions[:-1])):
        sums.add(name, torch.stack(hole_colours(inpainter, batch, texts, objects)))
    if not tellable(inpainter.blanks):
        return
    grey = torch.zeros_like(batch.images)
    for name, images in (("colour_words", batch.images), ("colour_words_without_picture", grey)):
        sums.add(name, torch.stack(colour_words(inpainter, batch, images)))
    both = colour_words(inpainter, batch, batch.images, alone=False)
    sums.add("both_colour_words", torch.stack(both))


def _only(config: CorruptionConfig, mostly_picture: float = 0.0, mostly_caption: float = 0.0) -> CorruptionConfig:
    """`config` with one kind of loss alone."""
    return config.model_copy(update={"mostly_picture": mostly_picture, "mostly_caption": mostly_caption})
