"""Words one after the other: the loop that drafts captions, and that reads them off a text row.

A caption (`caption_tokens`) is written from left to right, a word at a time, by anything that has a state
and gives logits: Show, Attend and Tell, or an LSTM head. Slots that are given keep their token, as long as the caption
has not ended before.

Each draw uses a number in [0, 1) of the caller's: what is drawn for an image does not depend on the rest of its batch.

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
"""(position t, embedding of the token at t, state) -> the state that tells the token at t + 1."""


class DecodedWords(NamedTuple):
    """Captions, and the probability of each token that was told; 1 elsewhere."""

    ids: Int64[Tensor, "B T"]
    probabilities: Float[Tensor, "B T"]


class KnownWords(NamedTuple):
    """Captions of before, and in which slots their tokens stay, with their probabilities."""

    written: DecodedWords
    kept: Bool[Tensor, "B T"]


def write(
    tokens: CaptionTokens,
    mind: LSTMState,
    step: Step,
    embed: Callable[[Int64[Tensor, "B"], int], Float[Tensor, "B D"]],
    logits: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B V"]],
    *,
    noise: Float[Tensor, "B T"] | None = None,
    temperature: float = 1.0,
    given: KnownWords | None = None,
) -> DecodedWords:
    """Captions from the state `mind` on. `noise` in [0, 1) draws each token, None takes the most probable one.

    A caption that has not ended before the last position ends there.
    """
    count, device = len(mind.h), mind.h.device
    visible_words = tokens.visible_words.to(device)
    ids = torch.full((count, tokens.length), tokens.pad, device=device)
    ids[:, 0] = tokens.start
    probabilities = torch.ones(count, tokens.length, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    for t in range(1, tokens.length):
        mind = step(t - 1, embed(ids[:, t - 1], t - 1), mind)
        scores = logits(mind.h).masked_fill(~visible_words, -torch.inf)
        predicted = (
            scores.argmax(-1) if noise is None else sample_from(temper(scores, temperature).softmax(-1), noise[:, t])
        )
        if t == tokens.length - 1:
            predicted = torch.full_like(predicted, tokens.end)
        # The probability is the model's own, whatever the temperature: what is told again is what it doubts.
        sure = scores.softmax(-1).gather(1, predicted[:, None])[:, 0]
        if given is not None:
            kept = given.kept[:, t]
            predicted = torch.where(kept, given.written.ids[:, t], predicted)
            sure = torch.where(kept, given.written.probabilities[:, t], sure)
        ids[:, t] = torch.where(ended, tokens.pad, predicted)
        probabilities[:, t] = torch.where(ended, 1.0, sure)
        ended |= predicted == tokens.end
    return DecodedWords(ids, probabilities)


def sample_from(probabilities: Float[Tensor, "B V"], noise: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """The id at which the cumulated probability passes `noise` in [0, 1); never one without probability."""
    cumulated = probabilities.double().cumsum(-1)
    # The sum is not exactly one.
    return (cumulated > noise.double()[:, None] * cumulated[:, -1:]).int().argmax(-1)
