"""Does an inpainting model use the other side? Asked with `shapes`, whose pictures and captions say the same things.

Two questions: the colour of an object that is cut out, which the caption alone can tell, and the colour words of a
caption, which the picture alone can tell. Each is put again with that other side taken away or exchanged.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from parti.fused.inpainting.blanks import BLANK, BlankReader
from parti.fused.inpainting.inpainter import Inpainter
from vqgan.data.batch import Batch
from vqgan.data.shapes import COLOURS, parse_caption
from vqgan.data.transforms import to_pil
from vqgan.metrics.shapes_checker import Box, describe

_EDGE = 0.06
"""How far the hole reaches beyond the object's box, in shares of the side: no pixel of the object is left."""
_COLOUR_WORD = re.compile(rf"\b({'|'.join(COLOURS)})\b")
_NAMES = (*COLOURS, "white")
_TONES = np.array([*COLOURS.values(), (255, 255, 255)], np.float32)


class Answers(NamedTuple):
    """How many were right, and how many were asked."""

    right: Tensor
    asked: Tensor


class CutOut(NamedTuple):
    """A picture's object that is cut out: its colour's name and its box."""

    colour: str
    box: Box


def hole_colours(
    inpainter: Inpainter, batch: Batch, captions: Sequence[str], objects: Sequence[CutOut | None]
) -> Answers:
    """How many of the `objects` get their colour back where the pictures are filled by these `captions`."""
    side = batch.images.shape[-1]
    holes = torch.stack([_hole(thing, side) for thing in objects])[:, None].to(batch.images.device)
    ids = inpainter.tokenizer.encode(captions).to(batch.images.device)
    filled = to_pil(inpainter.fill(batch.images, holes, ids, torch.zeros_like(ids, dtype=torch.bool)).images)
    pairs = [(picture, thing) for picture, thing in zip(filled, objects, strict=True) if thing is not None]
    right = sum(colour_at(picture, thing.box) == thing.colour for picture, thing in pairs)
    return Answers(torch.tensor(float(right)), torch.tensor(float(len(pairs))))


def colour_words(
    inpainter: Inpainter, batch: Batch, images: Float[Tensor, "B 3 H W"], *, alone: bool = True
) -> Answers:
    """How many colour words of the batch's captions are told beside `images`: each hidden `alone`, or both at once.

    Alone, the other colour word says which of the picture's two colours is not meant. At once, a word has to be told
    by the size, shape and place of its object.
    """
    captions = batch.texts()
    whole = inpainter.tokenizer.encode(captions).to(images.device)
    nothing = torch.zeros_like(images[:, :1], dtype=torch.bool)
    right, asked = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    for hidden in ([0], [1]) if alone else ([0, 1],):
        ids, blanks = (part.to(images.device) for part in inpainter.blanks.read([_hide(c, hidden) for c in captions]))
        told = inpainter.fill(images, nothing, ids, blanks).ids
        right, asked = right + (told == whole)[blanks].sum(), asked + blanks.sum()
    return Answers(right, asked)


def tellable(reader: BlankReader) -> bool:
    """Whether every colour is one token of the vocabulary, as a blank is."""
    return all(len(reader.pieces(colour)) == 1 for colour in COLOURS)


def first_objects(batch: Batch) -> list[CutOut | None]:
    """The object that each caption names first, where its picture shows it; None where two objects fit."""
    objects: list[CutOut | None] = []
    for picture, caption in zip(to_pil(batch.images), batch.texts(), strict=True):
        named = parse_caption(caption).first
        fitting = [t for t in describe(picture).things if (t.size, t.colour, t.shape) == tuple(named)]
        objects.append(CutOut(named.colour, fitting[0].box) if len(fitting) == 1 else None)
    return objects


def colour_at(picture: Image.Image, box: Box) -> str:
    """The palette's colour, or white, that is nearest to the middle of a box."""
    side = picture.width
    reach = max(0.5, box.side * side / 8)
    x, y = box.x * side, box.y * side
    middle = np.asarray(picture, np.float32)[
        max(0, round(y - reach)) : round(y + reach) + 1, max(0, round(x - reach)) : round(x + reach) + 1
    ]
    tone = np.median(middle.reshape(-1, 3), axis=0)
    return _NAMES[int(((_TONES - tone) ** 2).sum(1).argmin())]


def _hide(caption: str, numbers: Sequence[int]) -> str:
    """The caption with blanks for the colour words of these numbers."""
    words = iter(range(len(_COLOUR_WORD.findall(caption))))
    return _COLOUR_WORD.sub(lambda word: BLANK if next(words) in numbers else word[0], caption)


def _hole(thing: CutOut | None, side: int) -> Bool[Tensor, "side side"]:
    hole = torch.zeros(side, side, dtype=torch.bool)
    if thing is not None:
        reach = thing.box.side / 2 + _EDGE
        left, right = (round((thing.box.x + sign * reach) * side) for sign in (-1, 1))
        top, bottom = (round((thing.box.y + sign * reach) * side) for sign in (-1, 1))
        hole[max(0, top) : bottom, max(0, left) : right] = True
    return hole
