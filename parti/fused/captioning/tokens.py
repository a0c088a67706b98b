"""What a caption's ids are here: the start token, words, the end token, padding; T positions in all.

Any vocabulary of `parti.text` serves. A BERT frames captions by [CLS] and [SEP]; where a vocabulary frames an empty
text by a single token (a learned one has the null token), that token does both.

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
    """Captions as ids, and which of them were longer than fits."""

    ids: Int64[Tensor, "B T"]
    cut: list[bool]


class CaptionTokens:
    """Captions to ids and back. Raises ConfigError where T leaves no place for a word."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        if tokenizer.length <= _FRAME:
            raise ConfigError(f"text.length is {tokenizer.length}, and a caption's frame takes {_FRAME}; use more")
        self.tokenizer = tokenizer
        self.space: TextSpace = text_space(tokenizer)
        self.length, self.pad, self.mask = self.space.length, self.space.pad_id, self.space.mask_id
        encode = tokenizer.null_ids[tokenizer.null_ids != self.pad]
        self.start, self.end = int(encode[0]), int(encode[-1])
        visible_words = torch.ones(self.space.vocab_size, dtype=torch.bool)
        visible_words[[self.pad, self.mask, self.start]] = False
        visible_words[self.end] = True
        self.visible_words: Bool[Tensor, "V"] = visible_words
        """Ids that a caption may go on with: words and the end."""

    def encode(self, captions: Sequence[str]) -> EncodedCaption:
        """The ids of captions; longer ones are cut, and end where they were cut."""
        rows, cut = [], []
        encoded = self.tokenizer.tokenize(captions)
        for ids, was_cut in zip(encoded.ids.tolist(), encoded.cut, strict=True):
            words = [number for number in ids if number not in (self.pad, self.start, self.end)]
            kept = words[: self.length - _FRAME]
            rows.append([self.start, *kept, self.end] + [self.pad] * (self.length - _FRAME - len(kept)))
            cut.append(was_cut or len(kept) < len(words))
        return EncodedCaption(torch.tensor(rows).view(len(captions), self.length), cut)

    def texts(self, ids: Int64[Tensor, "B T"]) -> list[str]:
        """The captions that ids spell."""
        return self.tokenizer.decode(ids)

    def real(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Which positions hold a caption, its start and its end: all but the padding."""
        return ids != self.pad

    def predicted(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Which positions somebody had to tell: words and the end."""
        predicted = self.real(ids)
        predicted[:, 0] = False
        return predicted
