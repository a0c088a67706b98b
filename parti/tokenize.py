"""From batches of pictures and captions to the token pairs that stage 2 learns from."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from parti.text.tokenizer import TextTokenizer
from vqgan.data.batch import Batch
from vqgan.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class TokenPair:
    """Text ids (B, T) and image codes (B, N), row by row of one batch."""

    text_ids: Int64[Tensor, "B T"]
    codes: Int64[Tensor, "B N"]


class PairTokenizer:
    """Both tokenizers of a run; counts the captions that were too long."""

    def __init__(self, text: TextTokenizer, image: ImageTokenizer) -> None:
        self.text = text
        self.image = image
        self.cut_captions = 0

    def __call__(self, batch: Batch, drop: Bool[Tensor, "B"] | None = None) -> TokenPair:
        """Tokens of a batch; where `drop` is true the caption becomes the empty one (for guidance)."""
        captions = batch.texts()
        self.cut_captions += sum(self.text.is_cut(captions))
        text_ids = self.text.encode(captions)
        if drop is not None:
            text_ids[drop] = self.text.null_ids
        return TokenPair(text_ids.to(batch.images.device), self.image.encode(batch.images))


def dropped_captions(
    probability: float, batch_size: int, seed: int, step: int, start: int, count: int
) -> Bool[Tensor, "B"]:
    """Which of `count` rows, from row `start` of the global batch of this step, lose their caption.

    A function of (seed, step, row), so it does not depend on how the batch is divided between processes.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return (torch.rand(batch_size, generator=generator) < probability)[start : start + count]
