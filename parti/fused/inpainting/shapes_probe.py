"""Probes whether an inpainting model uses the other side, on `shapes`, whose captions fully describe the images.

Two probes: the color of a removed object, which only the caption gives, and the masked color words of a caption, which
only the image gives. Each is repeated with that other side removed or exchanged.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.masked_captions import BLANK, MaskedCaptionReader
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.data.sources.shapes import COLORS, parse_caption
from vqgan.metrics.shapes_checker import Box, describe

_EDGE = 0.06
"""Margin of the hole around the object's box, as a fraction of the side, so that no pixel of the object is left."""
_COLOR_WORD = re.compile(rf"\b({'|'.join(COLORS)})\b")
_NAMES = (*COLORS, "white")
_TONES = np.array([*COLORS.values(), (255, 255, 255)], np.float32)


class ProbeAccuracy(NamedTuple):
    """Number of correct answers, and of all."""

    correct: Tensor
    total: Tensor


class MaskedObject(NamedTuple):
    """The removed object of an image: the name of its color, and its box."""

    color: str
    box: Box


def hole_colors(
    inpainter: Inpainter, batch: Batch, captions: Sequence[str], objects: Sequence[MaskedObject | None]
) -> ProbeAccuracy:
    """Counts the `objects` that get their color back when the images are filled in with these `captions`."""
    side = batch.images.shape[-1]
    holes = torch.stack([_hole(thing, side) for thing in objects])[:, None].to(batch.images.device)
    ids = inpainter.tokenizer.encode(captions).to(batch.images.device)
    filled = to_pil(inpainter.fill(batch.images, holes, ids, torch.zeros_like(ids, dtype=torch.bool)).images)
    pairs = [(image, thing) for image, thing in zip(filled, objects, strict=True) if thing is not None]
    correct = sum(color_at(image, thing.box) == thing.color for image, thing in pairs)
    return ProbeAccuracy(torch.tensor(float(correct)), torch.tensor(float(len(pairs))))


def color_words(
    inpainter: Inpainter, batch: Batch, images: Float[Tensor, "B 3 H W"], *, alone: bool = True
) -> ProbeAccuracy:
    """Counts the correctly predicted color words of the batch's captions given `images`: masked one at a time
    (`alone`), or both at once.

    One at a time, the other color word excludes one of the image's two colors. Both at once, a word has to be
    predicted from the size, shape and place of its object.
    """
    captions = batch.texts()
    whole = inpainter.tokenizer.encode(captions).to(images.device)
    nothing = torch.zeros_like(images[:, :1], dtype=torch.bool)
    correct, total = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    for hidden in ([0], [1]) if alone else ([0, 1],):
        ids, masked_captions = (
            part.to(images.device) for part in inpainter.masked_captions.read([_hide(c, hidden) for c in captions])
        )
        predicted = inpainter.fill(images, nothing, ids, masked_captions).ids
        correct, total = correct + (predicted == whole)[masked_captions].sum(), total + masked_captions.sum()
    return ProbeAccuracy(correct, total)


def visible_words(reader: MaskedCaptionReader) -> bool:
    """Returns whether every color is a single token of the vocabulary, like a blank."""
    return all(len(reader.pieces(color)) == 1 for color in COLORS)


def first_objects(batch: Batch) -> list[MaskedObject | None]:
    """Returns the object that each caption names first; None unless exactly one object of the image fits."""
    objects: list[MaskedObject | None] = []
    for image, caption in zip(to_pil(batch.images), batch.texts(), strict=True):
        named = parse_caption(caption).first
        fitting = [t for t in describe(image).objects if (t.size, t.color, t.shape) == tuple(named)]
        objects.append(MaskedObject(named.color, fitting[0].box) if len(fitting) == 1 else None)
    return objects


def color_at(image: Image.Image, box: Box) -> str:
    """Returns the palette color, or white, that is nearest to the middle of a box."""
    side = image.width
    reach = max(0.5, box.side * side / 8)
    x, y = box.x * side, box.y * side
    middle = np.asarray(image, np.float32)[
        max(0, round(y - reach)) : round(y + reach) + 1, max(0, round(x - reach)) : round(x + reach) + 1
    ]
    tone = np.median(middle.reshape(-1, 3), axis=0)
    return _NAMES[int(((_TONES - tone) ** 2).sum(1).argmin())]


def _hide(caption: str, numbers: Sequence[int]) -> str:
    """Replaces the color words of these numbers by blanks."""
    words = iter(range(len(_COLOR_WORD.findall(caption))))
    return _COLOR_WORD.sub(lambda word: BLANK if next(words) in numbers else word[0], caption)


def _hole(thing: MaskedObject | None, side: int) -> Bool[Tensor, "side side"]:
    hole = torch.zeros(side, side, dtype=torch.bool)
    if thing is not None:
        reach = thing.box.side / 2 + _EDGE
        left, right = (round((thing.box.x + sign * reach) * side) for sign in (-1, 1))
        top, bottom = (round((thing.box.y + sign * reach) * side) for sign in (-1, 1))
        hole[max(0, top) : bottom, max(0, left) : right] = True
    return hole
