"""Masked tokens (BERT, arXiv 1810.04805, section 3.1): 15% of a text's tokens are predicted from the others.

Of the chosen tokens 80% are masked, 10% replaced by a random token, 10% unchanged. At least one token of each text is
chosen (as in BERT's published code), because captions are short. Padding, and the tokens of an empty caption, are never
chosen. The network decides what replaces a masked token (`parti.text_encoder.network`).

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
    """Masking rates; the defaults are BERT's."""

    chosen: float = Field(0.15, gt=0, lt=1)
    """Fraction of a text's tokens that are predicted; at least one of each text."""
    hidden: float = Field(0.8, ge=0, le=1)
    """Fraction of the chosen tokens that are masked."""
    replaced: float = Field(0.1, ge=0, le=1)
    """Fraction of the chosen tokens that are replaced by a random one. The rest of them is unchanged."""


class MaskedText(NamedTuple):
    """ids: the input with random replacements. hidden: masked positions. chosen: positions to predict. whole: the
    original ids."""

    ids: Int64[Tensor, "B T"]
    hidden: Bool[Tensor, "B T"]
    chosen: Bool[Tensor, "B T"]
    whole: Int64[Tensor, "B T"]

    def to(self, device: torch.device) -> "MaskedText":
        """Copies it to `device`."""
        return MaskedText(*(part.to(device) for part in self))


class Words:
    """The ids of a vocabulary that are text: all but padding and the tokens of an empty caption."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._is_word = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
        self._is_word[tokenizer.null_ids] = False
        self._is_word[tokenizer.pad_id] = False
        self.ids = self._is_word.nonzero()[:, 0]

    def where(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Returns the positions of `ids` that hold text."""
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
    """Returns the masked rows of `ids`, which begin at row `start` of the `batch_size` rows of this step.

    A function of (seed, step, row), so it does not depend on how the batch is split between processes.
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
    """Chooses `share` of each row's words, rounded but at least one: those with the smallest `order` < 1."""
    counts = words.sum(1, keepdim=True)
    wanted = torch.minimum((share * counts).round().clamp(min=1), counts)
    rank = order.masked_fill(~words, 1.0).argsort(1).argsort(1)
    return rank < wanted


class MaskedTokenScores(NamedTuple):
    """Sums over the chosen tokens: cross-entropy in nats, number of correct predictions, number of tokens."""

    nats: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    total: Float[Tensor, ""]


def score_masked_tokens(logits: Float[Tensor, "M W"], masked: MaskedText) -> MaskedTokenScores:
    """Scores `logits` of the chosen positions, row by row, against the original tokens."""
    targets = masked.whole[masked.chosen]
    nats = F.cross_entropy(logits, targets, reduction="sum")
    return MaskedTokenScores(nats, (logits.argmax(-1) == targets).float().sum(), masked.chosen.float().sum())
