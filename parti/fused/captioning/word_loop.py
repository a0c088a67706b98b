"""The autoregressive loop over words that drafts captions and decodes them from a text row.

A caption (`parti.fused.captioning.tokens`) is generated from left to right by anything that has a state and gives
logits: Show, Attend and Tell, or an LSTM head. Known words keep their token, unless the caption has ended before them.

Each sample uses a number in [0, 1) from the caller, so the caption of an image does not depend on the rest of its
batch.

Legend: B captions, T text positions, V vocabulary, D text width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from parti.fused.captioning.show_attend_tell import LSTMState
from parti.fused.captioning.tokens import CaptionTokens
from parti.sampling.filters import temper

Step = Callable[[int, Float[Tensor, "B D"], LSTMState], LSTMState]
"""(position t, embedding of the token at t, state) -> the state that predicts the token at t + 1."""


class DecodedWords(NamedTuple):
    """Captions, and the probability of each predicted token; 1 elsewhere."""

    ids: Int64[Tensor, "B T"]
    probabilities: Float[Tensor, "B T"]


class KnownWords(NamedTuple):
    """Captions of the previous round, and the mask of the tokens that stay, with their probabilities."""

    previous: DecodedWords
    mask: Bool[Tensor, "B T"]


def generate_words(
    tokens: CaptionTokens,
    state: LSTMState,
    step: Step,
    embed: Callable[[Int64[Tensor, "B"], int], Float[Tensor, "B D"]],
    logits: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B V"]],
    *,
    noise: Float[Tensor, "B T"] | None = None,
    temperature: float = 1.0,
    known: KnownWords | None = None,
) -> DecodedWords:
    """Generates captions from the initial `state`: sampled with `noise` in [0, 1), or greedily without it.

    A caption that has not ended before the last position ends there.
    """
    count, device = len(state.h), state.h.device
    visible_words = tokens.visible_words.to(device)
    ids = torch.full((count, tokens.length), tokens.pad, device=device)
    ids[:, 0] = tokens.start
    probabilities = torch.ones(count, tokens.length, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    for t in range(1, tokens.length):
        state = step(t - 1, embed(ids[:, t - 1], t - 1), state)
        scores = logits(state.h).masked_fill(~visible_words, -torch.inf)
        predicted = (
            scores.argmax(-1) if noise is None else sample_from(temper(scores, temperature).softmax(-1), noise[:, t])
        )
        if t == tokens.length - 1:
            predicted = torch.full_like(predicted, tokens.end)
        # The probability at temperature 1, whatever the temperature: refinement masks what the model is unsure of.
        confidence = scores.softmax(-1).gather(1, predicted[:, None])[:, 0]
        if known is not None:
            mask = known.mask[:, t]
            predicted = torch.where(mask, known.previous.ids[:, t], predicted)
            confidence = torch.where(mask, known.previous.probabilities[:, t], confidence)
        ids[:, t] = torch.where(ended, tokens.pad, predicted)
        probabilities[:, t] = torch.where(ended, 1.0, confidence)
        ended |= predicted == tokens.end
    return DecodedWords(ids, probabilities)


def sample_from(probabilities: Float[Tensor, "B V"], noise: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """Samples by the inverse CDF: the first id whose cumulative probability exceeds `noise` in [0, 1).

    Never returns an id of probability zero.
    """
    cumulative = probabilities.double().cumsum(-1)
    # The sum is not exactly one.
    return (cumulative > noise.double()[:, None] * cumulative[:, -1:]).int().argmax(-1)
