"""Captions of images by a trained captioner: draft, one parallel pass, rounds of refinement (papers.md E.4).

1. Show, Attend and Tell drafts a caption, word by word: row 3's own caption.
2. The trunk reads the whole draft at once, with the image; the LSTM head of the exit row reads its text row off. So
   only small LSTMs go word by word: the model is partially autoregressive.
3. Round r of R: the least probable tokens are hidden, the trunk reads what is left, and the head tells the hidden ones
   again. Each round hides fewer, and a caption that a round left unchanged is done (mask-predict, Ghazvininejad et al.,
   1904.09324, section 3).

Departure from papers.md E.4: the share of round r, 1 - r / (R + 1), is one of the caption's own tokens, its end
included, not of all 30 positions: what is hidden behind the end tells nothing.

Legend: B captions, T text positions, P image positions.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from parti.fused.captioning.tokens import CaptionTokens
from parti.fused.captioning.word_loop import DecodedWords, KnownWords
from vqgan.config.schema import Config

Row = Literal[3, 7, 11, 14]
"""A row of the drawing that tells words."""
ROWS: tuple[Row, ...] = (3, 7, 11, 14)
MOST_ROUNDS = 4


class DecodingConfig(Config):
    """How captions are told."""

    exit_row: Row = 14
    """The row whose head tells the caption: rows behind it are not computed. 3: the draft itself."""
    rounds: int = Field(1, ge=0, le=MOST_ROUNDS)
    """Most rounds of refinement. Nothing refines a draft of exit_row 3."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """0: the most probable token each time; else tokens are drawn from the distribution at this temperature."""


@runtime_checkable
class Reading(Protocol):
    """A batch of images that a captioner is about to tell (`parti.fused.captioning.captioner.ImageContext`)."""

    def draft(self, noise: Float[Tensor, "B T"] | None, temperature: float) -> DecodedWords: ...

    def predict(
        self,
        seen: Int64[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
        row: Row,
        noise: Float[Tensor, "B T"] | None,
        temperature: float,
        given: KnownWords | None,
    ) -> DecodedWords: ...


class Decoded(NamedTuple):
    """`stages[r]` are the captions after r rounds; the last are the result. A caption that is done stays the same."""

    stages: tuple[DecodedWords, ...]

    @property
    def captions(self) -> DecodedWords:
        return self.stages[-1]


@torch.no_grad()
def decode(
    context: Reading, tokens: CaptionTokens, config: DecodingConfig, noise: Float[Tensor, "S B T"] | None = None
) -> Decoded:
    """Captions of all images of a view. Temperature 0 needs no `noise`; else it has 2 + rounds parts
    (`decoding_noise`)."""
    parts = iter([None] * (2 + config.rounds) if noise is None or not config.temperature else noise)
    temperature = config.temperature or 1.0
    drafted = context.draft(next(parts), temperature)
    if config.exit_row == 3:
        return Decoded((drafted,))
    real = tokens.real(drafted.ids)
    written = context.predict(drafted.ids, real, config.exit_row, next(parts), temperature, None)
    stages = [written]
    active = torch.ones(len(written.ids), 1, dtype=torch.bool, device=written.ids.device)
    for number in range(1, config.rounds + 1):
        hidden = least_probable(written, tokens.predicted(written.ids), 1 - number / (config.rounds + 1))
        real = tokens.real(written.ids)
        again = context.predict(
            written.ids.masked_fill(hidden, tokens.mask),
            real,
            config.exit_row,
            next(parts),
            temperature,
            KnownWords(written, real & ~hidden),
        )
        changed = (again.ids != written.ids).any(1, keepdim=True)
        written = DecodedWords(
            torch.where(active, again.ids, written.ids), torch.where(active, again.probabilities, written.probabilities)
        )
        active = active & changed
        stages.append(written)
        if not active.any():
            stages += [written] * (config.rounds - number)
            break
    return Decoded(tuple(stages))


def least_probable(written: DecodedWords, words: Bool[Tensor, "B T"], share: float) -> Bool[Tensor, "B T"]:
    """Of each caption's `words` this share, rounded down: those of the least probability, of equals the first."""
    order = written.probabilities.masked_fill(~words, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(1)
    # In tenths of thousandths: 5 * (1 - 4 / 5) is one word, not the 0.9999 of binary fractions.
    return rank < (words.sum(1, keepdim=True) * share + 1e-4).floor()


def decoding_noise(seeds: Sequence[int], length: int, rounds: int) -> Float[Tensor, "S B T"]:
    """Noise for `decode`: a caption's own seed says what is drawn for it, whatever its batch."""
    draws = [torch.rand(2 + rounds, length, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws, dim=1)
