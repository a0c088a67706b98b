"""Tokenizes batches of images (or their codes) and captions for stage 2, and drops captions for guidance."""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from parti.code_cache.batch import CodedBatch
from parti.models import TokenSpace
from parti.text.tokenizer import TextTokenizer
from vqgan.data.batch import Batch
from vqgan.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class TokenPair:
    """Text ids (B, T) and image codes (B, N) of one batch; `truncated_fraction` of the captions were truncated."""

    text_ids: Int64[Tensor, "B T"]
    codes: Int64[Tensor, "B N"]
    truncated_fraction: float


def token_space(text: TextTokenizer, image: ImageTokenizer) -> TokenSpace:
    """Returns the sizes of a generator between these two tokenizers."""
    return TokenSpace(
        text_vocab_size=text.vocab_size,
        text_length=text.length,
        text_pad_id=text.pad_id,
        image_vocab_size=image.vocab_size,
        image_grid=image.grid,
    )


class PairTokenizer:
    """Both tokenizers of a run. `bpe_dropout` is the probability of BPE dropout in training.

    With `ids_are_ours` the text ids in batches of a code cache are those of this text tokenizer and used as they are.
    """

    def __init__(
        self, text: TextTokenizer, image: ImageTokenizer, bpe_dropout: float = 0.0, ids_are_ours: bool = False
    ) -> None:
        self.text = text
        self.image = image
        self.bpe_dropout = bpe_dropout
        self.ids_are_ours = ids_are_ours

    def __call__(
        self, batch: Batch, drop: Bool[Tensor, "B"] | None = None, draw: tuple[int, int, int] | None = None
    ) -> TokenPair:
        """Tokenizes a batch; captions are dropped (replaced by the null caption) where `drop` is true, for guidance.

        In training `draw` is (seed, step, the batch's first row in the global batch): what BPE dropout depends on.
        """
        captions = batch.texts()
        if self.bpe_dropout and draw is not None:
            seed, step, start = draw
            generators = [random.Random(f"{seed} {step} {start + row}") for row in range(len(captions))]
            text_ids, cut = self.text.tokenize_with_dropout(captions, self.bpe_dropout, generators)
        elif self.bpe_dropout and drop is not None:
            raise ValueError("BPE dropout in training is a function of (seed, step, row); give them as `draw`")
        elif self.ids_are_ours and isinstance(batch, CodedBatch) and batch.text_ids is not None:
            text_ids, cut = batch.text_ids.clone(), batch.text_truncated.tolist()
        else:
            text_ids, cut = self.text.tokenize(captions)
        if drop is not None:
            text_ids[drop] = self.text.null_ids
        # The loader's images are in range; checking them again would wait for the device.
        codes = batch.codes if isinstance(batch, CodedBatch) else self.image.encode(batch.images, check_range=False)
        return TokenPair(text_ids.to(codes.device), codes, sum(cut) / len(cut))


def dropped_captions(
    probability: float, batch_size: int, seed: int, step: int, start: int, count: int
) -> Bool[Tensor, "B"]:
    """Caption dropout: returns which of `count` rows, from row `start` of the global batch of this step, drop their
    caption.

    A function of (seed, step, row), so it does not depend on how the batch is split between processes.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return (torch.rand(batch_size, generator=generator) < probability)[start : start + count]
