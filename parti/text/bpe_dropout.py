"""BPE dropout (Provilkov, 1910.13267; DALL-E, arXiv 2102.12092, section 2.2): a caption is divided otherwise each time.

Each merge that could be made next is left out with some probability, so that words are also seen in smaller pieces.
The `tokenizers` library does this from a random state that nobody can set; here it is a function of the generator that
is given, and so of a run's seed and step.
"""

import json
import random
from itertools import pairwise

from tokenizers import Tokenizer


class BPEDropout:
    """Divides text with the merges of `tokenizer`, some left out. Raises ValueError for any but a BPE vocabulary."""

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
        """Ids of `text` without special tokens. Probability 0 gives those of the vocabulary itself."""
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(self._tokenizer.normalizer.normalize_str(text))
        return [self._ids[piece] for word, _ in words for piece in self._divide(word, probability, generator)]

    def _divide(self, word: str, probability: float, generator: random.Random) -> list[str]:
        pieces = list(word)
        while True:
            # Algorithm 1: of the merges that are possible now, drop some, and make the best of the others.
            possible = [
                (self._ranks[pair], place)
                for place, pair in enumerate(pairwise(pieces))
                if pair in self._ranks and generator.random() >= probability
            ]
            if not possible:
                return pieces
            _, place = min(possible)
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
