"""Masked tokens (BERT, arXiv 1810.04805, section 3.1): 15% of a text's tokens are to be told from the others.

Of those that are chosen 80% are hidden, 10% replaced by a random token, 10% left as they are. Each text gives at least
one of its tokens (as in BERT's published code): captions are short. Padding, and what an empty caption consists of
too, is no token of a text. What stands for a hidden token is the network's business (`parti.text_encoder.network`).

Legend: B batch, T text positions, M chosen tokens, W vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import Config


class MaskingConfig(Config, may_change=("chosen", "hidden", "replaced")):
    """Which tokens are hidden. The defaults are BERT's."""

    chosen: float = Field(0.15, gt=0, lt=1)
    """Share of a text's tokens that are to be told; at least one of each text."""
    hidden: float = Field(0.8, ge=0, le=1)
    """Share of the chosen tokens that are hidden."""
    replaced: float = Field(0.1, ge=0, le=1)
    """Share of the chosen tokens that become a random one. What is left of the chosen ones stays as it is."""


class MaskedText(NamedTuple):
    """ids: with the random tokens in them. hidden: where the network sees no token. chosen: where it is asked.
    whole: the ids as they were."""

    ids: Int64[Tensor, "B T"]
    hidden: Bool[Tensor, "B T"]
    chosen: Bool[Tensor, "B T"]
    whole: Int64[Tensor, "B T"]

    def to(self, device: torch.device) -> "MaskedText":
        """The same on `device`."""
        return MaskedText(*(part.to(device) for part in self))


class Words:
    """Which ids of a vocabulary are text: all but padding and what stands for, or frames, an empty caption."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._is_word = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
        self._is_word[tokenizer.null_ids] = False
        self._is_word[tokenizer.pad_id] = False
        self.ids = self._is_word.nonzero()[:, 0]

    def where(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """The positions of `ids` that hold text."""
        return self._is_word[ids]


def mask_tokens(
    ids: Int64[Tensor, "B T"],
    words: Words,
    config: MaskingConfig,
    *,
    batch_size: int,
    seed: int,
    step: int,
    start: int,
) -> MaskedText:
    """Masks of the rows of `ids`, which begin at row `start` of the global batch of this step, `batch_size` in all.

    A function of (seed, step, row), so it does not depend on how the batch is divided between processes.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows, length = slice(start, start + len(ids)), ids.shape[1]
    order, fate = torch.rand(2, batch_size, length, generator=generator)[:, rows]
    others = torch.randint(len(words.ids), (batch_size, length), generator=generator)[rows]
    chosen = choose(words.where(ids), config.chosen, order)
    hidden = chosen & (fate < config.hidden)
    replaced = chosen & ~hidden & (fate < config.hidden + config.replaced)
    return MaskedText(torch.where(replaced, words.ids[others], ids), hidden, chosen, ids)


def choose(words: Bool[Tensor, "B T"], share: float, order: Float[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Of each row's words `share`, to the nearest number but at least one: those that come first by `order` < 1."""
    counts = words.sum(1, keepdim=True)
    wanted = torch.minimum((share * counts).round().clamp(min=1), counts)
    rank = order.masked_fill(~words, 1.0).argsort(1).argsort(1)
    return rank < wanted


class Told(NamedTuple):
    """Over the chosen tokens: the sum of the cross-entropies, how many were told right, how many there were."""

    nats: Float[Tensor, ""]
    right: Float[Tensor, ""]
    asked: Float[Tensor, ""]


def tell(logits: Float[Tensor, "M W"], masked: MaskedText) -> Told:
    """How well `logits` of the chosen positions, row by row, tell the tokens that are there."""
    targets = masked.whole[masked.chosen]
    nats = F.cross_entropy(logits, targets, reduction="sum")
    return Told(nats, (logits.argmax(-1) == targets).float().sum(), masked.chosen.float().sum())
