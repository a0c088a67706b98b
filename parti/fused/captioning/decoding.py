"""Captions of images by a trained captioner: draft, one parallel pass, rounds of refinement (papers.md E.4).

1. Show, Attend and Tell drafts a caption, word by word: the caption of row 3.
2. The trunk reads the whole draft at once, with the image; the LSTM head of the exit row decodes its text row. Only
   small LSTMs run word by word, so the model is partially autoregressive.
3. Round r of R: the least probable tokens are masked, the trunk reads the rest, and the head predicts the masked ones
   again. Each round masks fewer, and a caption that a round leaves unchanged is done (mask-predict, Ghazvininejad et
   al., 1904.09324, section 3).

Departure from papers.md E.4: the masked share of round r, 1 - r / (R + 1), is relative to the caption's own tokens, its
end included, not to all 30 positions: masking padding would have no effect.

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
"""A row of the diagram that has a word head."""
ROWS: tuple[Row, ...] = (3, 7, 11, 14)
MOST_ROUNDS = 4


class DecodingConfig(Config):
    """How captions are decoded."""

    exit_row: Row = 14
    """The row whose head decodes the caption; later rows are not computed. 3: the draft itself."""
    rounds: int = Field(1, ge=0, le=MOST_ROUNDS)
    """Largest number of refinement rounds. A draft (exit_row 3) is not refined."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """0: greedy decoding; otherwise tokens are sampled at this temperature."""


@runtime_checkable
class CaptionContext(Protocol):
    """A batch of encoded images from which captions are decoded (`parti.fused.captioning.captioner.ImageContext`)."""

    def draft(self, noise: Float[Tensor, "B T"] | None, temperature: float) -> DecodedWords: ...

    def predict(
        self,
        seen: Int64[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
        row: Row,
        noise: Float[Tensor, "B T"] | None,
        temperature: float,
        known: KnownWords | None,
    ) -> DecodedWords: ...


class Decoded(NamedTuple):
    """`stages[r]` holds the captions after r rounds; the last stage is the result. A finished caption does not
    change."""

    stages: tuple[DecodedWords, ...]

    @property
    def captions(self) -> DecodedWords:
        return self.stages[-1]


@torch.no_grad()
def decode(
    context: CaptionContext, tokens: CaptionTokens, config: DecodingConfig, noise: Float[Tensor, "S B T"] | None = None
) -> Decoded:
    """Decodes the captions of all images of `context`.

    Temperature 0 needs no `noise`; otherwise it has 2 + rounds parts (`decoding_noise`).
    """
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
    """Returns the mask of the least probable `share` of each caption's `words`, rounded down; ties go to the first."""
    order = written.probabilities.masked_fill(~words, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(1)
    # Tolerance 1e-4: 5 * (1 - 4 / 5) is one word, although floating point gives 0.9999.
    return rank < (words.sum(1, keepdim=True) * share + 1e-4).floor()


def decoding_noise(seeds: Sequence[int], length: int, rounds: int) -> Float[Tensor, "S B T"]:
    """Returns the noise for `decode`; a caption's noise depends on its own seed alone, not on its batch."""
    noise = [torch.rand(2 + rounds, length, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise, dim=1)
