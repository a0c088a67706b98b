"""BPE dropout (Provilkov, 1910.13267; DALL-E, arXiv 2102.12092, section 2.2): random segmentation of captions.

Each possible merge is skipped with some probability, so that words are also seen in smaller pieces. The `tokenizers`
library uses a random state that cannot be seeded; here it depends on the given generator, and so on a run's seed and
step.
"""

import json
import random
from itertools import pairwise

from tokenizers import Tokenizer


class BPEDropout:
    """Tokenizes text with the merges of `tokenizer`, skipping some. Raises ValueError for other vocabularies than
    BPE."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        model = json.loads(tokenizer.to_str())["model"]
        if model["type"] != "BPE":
            raise ValueError(
                f"merges are dropped from a BPE vocabulary, this is a {model['type']}; set the dropout to 0"
            )
        self._tokenizer = tokenizer
        self._ids: dict[str, int] = model["vocab"]
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}

    def encode(self, text: str, probability: float, generator: random.Random) -> list[int]:
        """Returns the ids of `text` without special tokens; probability 0 gives the regular tokenization."""
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(self._tokenizer.normalizer.normalize_str(text))
        return [self._ids[piece] for word, _ in words for piece in self._divide(word, probability, generator)]

    def _divide(self, word: str, probability: float, generator: random.Random) -> list[str]:
        pieces = list(word)
        while True:
            # Algorithm 1: drop some of the possible merges, and apply the best of the others.
            possible = [
                (self._ranks[pair], place)
                for place, pair in enumerate(pairwise(pieces))
                if pair in self._ranks and generator.random() >= probability
            ]
            if not possible:
                return pieces
            _, place = min(possible)
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
