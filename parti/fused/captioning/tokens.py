"""Caption ids: the start token, words, the end token, padding; T positions in all.

Any vocabulary of `parti.text` works. A BERT wraps captions in [CLS] and [SEP]; if a vocabulary encodes an empty text as
a single token (the null token of a learned one), that token is both start and end.

Legend: B captions, T text positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from parti.fused.text_side import TextSpace, text_space
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import ConfigError

_FRAME = 2


class EncodedCaption(NamedTuple):
    """Captions as ids, and which of them were truncated."""

    ids: Int64[Tensor, "B T"]
    cut: list[bool]


class CaptionTokens:
    """Encodes captions to ids and back. Raises ConfigError if T leaves no room for a word."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        if tokenizer.length <= _FRAME:
            raise ConfigError(
                f"text.length is {tokenizer.length}, but start and end take {_FRAME} tokens; set it to {_FRAME + 1} "
                "at least"
            )
        self.tokenizer = tokenizer
        self.space: TextSpace = text_space(tokenizer)
        self.length, self.pad, self.mask = self.space.length, self.space.pad_id, self.space.mask_id
        encode = tokenizer.null_ids[tokenizer.null_ids != self.pad]
        self.start, self.end = int(encode[0]), int(encode[-1])
        visible_words = torch.ones(self.space.vocab_size, dtype=torch.bool)
        visible_words[[self.pad, self.mask, self.start]] = False
        visible_words[self.end] = True
        self.visible_words: Bool[Tensor, "V"] = visible_words
        """Ids that may follow in a caption: words and the end token."""

    def encode(self, captions: Sequence[str]) -> EncodedCaption:
        """Returns the ids of captions; longer ones are truncated and get the end token there."""
        rows, cut = [], []
        encoded = self.tokenizer.tokenize(captions)
        for ids, was_cut in zip(encoded.ids.tolist(), encoded.cut, strict=True):
            words = [number for number in ids if number not in (self.pad, self.start, self.end)]
            fitting = words[: self.length - _FRAME]
            rows.append([self.start, *fitting, self.end] + [self.pad] * (self.length - _FRAME - len(fitting)))
            cut.append(was_cut or len(fitting) < len(words))
        return EncodedCaption(torch.tensor(rows).view(len(captions), self.length), cut)

    def texts(self, ids: Int64[Tensor, "B T"]) -> list[str]:
        """Decodes ids to captions."""
        return self.tokenizer.decode(ids)

    def real(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Returns the positions that are not padding: a caption with its start and its end."""
        return ids != self.pad

    def predicted(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Returns the positions that a model predicts: words and the end."""
        predicted = self.real(ids)
        predicted[:, 0] = False
        return predicted
