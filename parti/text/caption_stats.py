"""Statistics of captions under a vocabulary: lengths in tokens, truncation, characters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parti.text.tokenizer import TextTokenizer

_RARE = 2
"""Largest count of a rare character."""
_AT_ONCE = 10_000


@dataclass(frozen=True)
class CaptionMetrics:
    """Statistics of one or more captions."""

    captions: int
    different: int
    length: int
    """Text positions T."""
    fewest: int
    median: int
    most_of_99_percent: int
    """99th percentile of the captions' tokens."""
    most: int
    longest: str
    cut: int
    """Number of captions with more than T tokens."""
    lost_share: float
    """Fraction of all tokens that are truncated."""
    alphabet: dict[str, int]
    """Characters by frequency."""
    unknown: dict[str, int]
    """Characters outside the vocabulary, by frequency."""
    with_unknown: int
    """Number of captions with text outside the vocabulary."""

    @property
    def rare(self) -> list[str]:
        """Characters that occur once or twice."""
        return [character for character, count in self.alphabet.items() if count <= _RARE]


def caption_metrics(captions: Sequence[str], tokenizer: TextTokenizer) -> CaptionMetrics:
    """Computes the statistics of captions. Raises ValueError without a caption."""
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
