"""Captions against a vocabulary: how long they are in tokens, what is cut, and which characters they are made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parti.text.tokenizer import TextTokenizer

_RARE = 2
"""A character that occurs at most so often is rare."""
_AT_ONCE = 10_000


@dataclass(frozen=True)
class CaptionMetrics:
    """Of one caption or more."""

    captions: int
    different: int
    length: int
    """Text positions T."""
    fewest: int
    median: int
    most_of_99_percent: int
    """99% of the captions have at most so many tokens."""
    most: int
    longest: str
    cut: int
    """Captions with more tokens than T."""
    lost_share: float
    """Share of all tokens that stand behind the cut."""
    alphabet: dict[str, int]
    """Characters by frequency."""
    unknown: dict[str, int]
    """Those outside the vocabulary."""
    with_unknown: int
    """Captions with text outside the vocabulary."""

    @property
    def rare(self) -> list[str]:
        """Characters that occur once or twice."""
        return [character for character, count in self.alphabet.items() if count <= _RARE]


def caption_metrics(captions: Sequence[str], tokenizer: TextTokenizer) -> CaptionMetrics:
    """Raises ValueError where there is no caption."""
    if not captions:
        raise ValueError("no captions to measure: give at least one")
    counts = [
        count
        for start in range(0, len(captions), _AT_ONCE)
        for count in tokenizer.count_tokens(captions[start : start + _AT_ONCE])
    ]
    tokens = np.array([count.tokens for count in counts])
    frequencies: Counter[str] = Counter()
    for caption in captions:
        frequencies.update(caption)
    alphabet = dict(sorted(frequencies.items(), key=lambda item: (-item[1], item[0])))
    known = tokenizer.count_tokens(list(alphabet))
    return CaptionMetrics(
        captions=len(captions),
        different=len(set(captions)),
        length=tokenizer.length,
        fewest=int(tokens.min()),
        median=int(np.median(tokens)),
        most_of_99_percent=int(np.quantile(tokens, 0.99, method="inverted_cdf")),
        most=int(tokens.max()),
        longest=captions[int(tokens.argmax())],
        cut=int((tokens > tokenizer.length).sum()),
        lost_share=float(np.maximum(tokens - tokenizer.length, 0).sum() / tokens.sum()),
        alphabet=alphabet,
        unknown={
            character: count
            for (character, count), found in zip(alphabet.items(), known, strict=True)
            if found.unknown and not character.isspace()
        },
        with_unknown=sum(count.unknown > 0 for count in counts),
    )
