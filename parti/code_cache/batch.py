"""Samples, items and batches of a code cache, with the interface that loader and loop expect.

They hold codes instead of pixels: `images` is (B, 3, 0, 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from PIL import Image
from torch import Tensor

from vqgan.data.batch import Batch, Item
from vqgan.data.captions import choose_caption
from vqgan.data.source import Sample, UnusableSample


@dataclass(frozen=True, kw_only=True)
class CodedSample(Sample):
    """The codes of each of K crops; the text ids of each caption, and whether it was truncated."""

    codes: Integer[np.ndarray, "K N"]
    text_ids: Integer[np.ndarray, "C T"] | None
    text_truncated: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class CodedItem(Item):
    """The codes of one crop, and the ids of the chosen caption if the cache has them."""

    codes: Int64[Tensor, "N"]
    text_ids: Int64[Tensor, "T"] | None
    text_truncated: bool

    @classmethod
    def stack(cls, items: Sequence[Item]) -> "CodedBatch":
        coded = [item for item in items if isinstance(item, CodedItem)]
        images = super().stack(coded)
        ids = [item.text_ids for item in coded if item.text_ids is not None]
        return CodedBatch(
            images=images.images,
            captions=images.captions,
            names=images.names,
            skipped=images.skipped,
            codes=torch.stack([item.codes for item in coded]),
            text_ids=torch.stack(ids) if ids else None,
            text_truncated=torch.tensor([item.text_truncated for item in coded]),
        )


@dataclass(frozen=True, kw_only=True)
class CodedBatch(Batch):
    """A batch with codes instead of images, and text ids if the cache has them."""

    codes: Int64[Tensor, "B N"]
    text_ids: Int64[Tensor, "B T"] | None
    text_truncated: Bool[Tensor, "B"]

    def pin_memory(self) -> "CodedBatch":
        return replace(self, codes=self.codes.pin_memory())

    def to(self, device: torch.device) -> "CodedBatch":
        """Copies the batch to a device, except for the text ids: captions are dropped from them first, on the host."""
        codes = self.codes.to(device, non_blocking=True)
        return replace(self, images=self.images.to(device), codes=codes)


def read_codes(sample: Sample, rng: np.random.Generator | None, skipped: tuple[UnusableSample, ...]) -> CodedItem:
    """Returns the item of a sample: with `rng` one of its crops and captions, without it the first."""
    assert isinstance(sample, CodedSample)
    views = len(sample.codes)
    # One crop uses no random number, like a deterministic transform, so the caption choice is that of training on
    # images.
    crop = int(rng.integers(views)) if rng is not None and views > 1 else 0
    caption = choose_caption(sample, rng)
    chosen = sample.captions.index(caption) if caption is not None else 0
    ids = None if sample.text_ids is None else torch.from_numpy(sample.text_ids[chosen].astype(np.int64))
    return CodedItem(
        image=torch.empty(3, 0, 0),
        caption=caption,
        name=sample.name,
        skipped=skipped,
        codes=torch.from_numpy(sample.codes[crop].astype(np.int64)),
        text_ids=ids,
        text_truncated=sample.text_truncated[chosen] if sample.text_truncated else False,
    )


NO_IMAGE = Image.new("RGB", (0, 0))
"""Placeholder for the image of a sample that has codes."""
