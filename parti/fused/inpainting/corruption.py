"""Corruption of training pairs: holes in the image and masked words of the caption.

Half of the pairs lose some of both. A quarter lose most of the image and keep their caption, a quarter keep their
image and lose at least half of the caption, so that the missing part can only come from the other side.

Words are masked as in BERT (arXiv 1810.04805, section 3.1: 15%, of these 80% masked, 10% another word, 10% unchanged),
or, as often, a span or the end of the caption is masked: completion. Each row's corruption is a function of
(seed, step, row), so it does not depend on how a batch is split.

Legend: B batch, H W pixels, T text positions.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from parti.fused.inpainting.holes import OVERSHOOT, random_hole
from parti.text.masked_tokens import MaskedText, MaskingConfig, Words, choose
from vqgan.config.schema import Config


class CorruptionConfig(
    Config,
    may_change=(
        "mostly_image",
        "mostly_caption",
        "smallest_hole",
        "largest_hole",
        "large_hole",
        "completion",
        "shortest_span",
        "long_span",
    ),
):
    """How much is removed, and how often from which side."""

    mostly_image: float = Field(0.25, ge=0, le=1)
    """Fraction of the pairs that lose `large_hole` of the image and nothing of the caption."""
    mostly_caption: float = Field(0.25, ge=0, le=1)
    """Fraction of the pairs that lose `long_span` of the caption and nothing of the image. All others lose both."""
    smallest_hole: float = Field(0.25, gt=0, lt=1)
    """Smallest fraction of an image that a moderate hole covers."""
    largest_hole: float = Field(0.5, gt=0, lt=1)
    """Largest fraction of an image that a moderate hole covers."""
    large_hole: float = Field(0.75, gt=0, lt=1)
    """Fraction of an image that a large hole covers."""
    words: MaskingConfig = MaskingConfig()
    """Masking of single words."""
    completion: float = Field(0.5, ge=0, le=1)
    """Fraction of the captions that lose a span or their end instead of single words, where both sides lose."""
    shortest_span: float = Field(0.3, gt=0, le=1)
    """Smallest fraction of a caption's words in such a span; the largest is the whole caption."""
    long_span: float = Field(0.5, gt=0, le=1)
    """Smallest fraction of a caption's words in the span of a pair that keeps its image."""

    @model_validator(mode="after")
    def _check_shares(self) -> "CorruptionConfig":
        if self.mostly_image + self.mostly_caption > 1:
            raise ValueError(
                f"mostly_image {self.mostly_image} and mostly_caption {self.mostly_caption} are more than all "
                "pairs; lower one"
            )
        if self.smallest_hole > self.largest_hole:
            raise ValueError(
                f"smallest_hole {self.smallest_hole} is larger than largest_hole {self.largest_hole}; exchange them"
            )
        return self


class CorruptedPair(NamedTuple):
    """holes: true where the image (B, 3, H, W) is to be filled; text: which words are masked or to be predicted."""

    holes: Bool[Tensor, "B 1 H W"]
    text: MaskedText

    def to(self, device: torch.device) -> "CorruptedPair":
        """Copies both to `device`."""
        return CorruptedPair(self.holes.to(device), self.text.to(device))


def corrupt(
    ids: Int64[Tensor, "B T"],
    side: int,
    words: Words,
    config: CorruptionConfig,
    *,
    seed: int,
    step: int,
    start: int,
) -> CorruptedPair:
    """Returns the corruption of images of `side` pixels and captions `ids`; the first is row `start` of the step."""
    where = words.where(ids)
    rows, length = ids.shape
    holes = np.zeros((rows, 1, side, side), np.bool_)
    spans = np.zeros((rows, length), np.bool_)
    here_and_there = np.zeros((rows, 1), np.bool_)
    order, fate = np.zeros((2, rows, length), np.float32)
    others = np.zeros((rows, length), np.int64)

    # 1. Sample the corruption of each row.
    for row in range(rows):
        rng = np.random.default_rng((seed, step, start + row))
        kind = rng.random()
        if kind < config.mostly_image:
            holes[row, 0] = random_hole(side, config.large_hole, rng)
            continue
        caption_alone = kind >= 1 - config.mostly_caption
        if caption_alone or rng.random() < config.completion:
            least = config.long_span if caption_alone else config.shortest_span
            spans[row] = _span(where[row].numpy(), least, rng)
        else:
            here_and_there[row] = True
            order[row], fate[row] = rng.random((2, length), np.float32)
            others[row] = rng.integers(len(words.ids), size=length)
        if not caption_alone:
            share = rng.uniform(config.smallest_hole, max(config.smallest_hole, config.largest_hole - OVERSHOOT))
            holes[row, 0] = random_hole(side, share, rng)

    # 2. Apply it to the words.
    span, generated = torch.from_numpy(spans), torch.from_numpy(fate)
    single = choose(where, config.words.chosen, torch.from_numpy(order)) & torch.from_numpy(here_and_there)
    hidden = single & (generated < config.words.hidden)
    replaced = single & ~hidden & (generated < config.words.hidden + config.words.replaced)
    predicted = torch.where(replaced, words.ids[torch.from_numpy(others)], ids)
    return CorruptedPair(torch.from_numpy(holes), MaskedText(predicted, hidden | span, single | span, ids))


def mask_images(images: Float[Tensor, "B 3 H W"], holes: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Fills holes with mid gray, 0 of [-1, 1]: row 0 of the diagram has three channels, none for a mask."""
    # Channels last, like the network's weights.
    return images.masked_fill(holes, 0.0).contiguous(memory_format=torch.channels_last)


def mask_words(text: MaskedText, mask_id: int) -> Int64[Tensor, "B T"]:
    """Returns the ids that the network reads, masked words replaced by `mask_id`."""
    return text.ids.masked_fill(text.hidden, mask_id)


def _span(words: Bool[np.ndarray, "T"], least: float, rng: np.random.Generator) -> Bool[np.ndarray, "T"]:
    """Samples a span of `least` to all of a text's words, at least one; half of them reach to the end of the text."""
    positions = np.flatnonzero(words)
    count = min(len(positions), max(1, round(rng.uniform(least, 1.0) * len(positions))))
    latest = len(positions) - count
    begin = latest if rng.random() < 0.5 else int(rng.integers(latest + 1))
    span = np.zeros_like(words)
    span[positions[begin : begin + count]] = True
    return span
