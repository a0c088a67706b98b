"""Captions with blanks: "a small [MASK] circle", each blank one token to predict.

A blank stands between spaces. The text before and after it is tokenized separately, which gives the same tokens as the
whole caption, because no token spans two words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from parti.fused.text_side import TextSpace
from parti.text.masked_tokens import Words
from parti.text.tokenizer import TextTokenizer

BLANK = "[MASK]"


class MaskedCaption(NamedTuple):
    """Ids (B, T) with mask tokens, and their positions."""

    ids: Int64[Tensor, "B T"]
    masked_captions: Bool[Tensor, "B T"]


class MaskedCaptionReader:
    """Encodes captions with blanks, and fills predicted words into them."""

    def __init__(self, tokenizer: TextTokenizer, space: TextSpace) -> None:
        self._tokenizer = tokenizer
        self._space = space
        self._words = Words(tokenizer)
        # What a vocabulary puts before and after every text, such as a BERT's [CLS] and [SEP].
        framed = tokenizer.encode(["a"])
        inside = self._words.where(framed)[0].nonzero()[:, 0]
        present = int(space.seen(framed).sum())
        self._lead, self._tail = framed[0, : int(inside[0])], framed[0, int(inside[-1]) + 1 : present]

    def pieces(self, text: str) -> Int64[Tensor, "N"]:
        """Returns the tokens of a text, without the tokens that wrap it."""
        ids = self._tokenizer.encode([text])
        return ids[self._words.where(ids)]

    def read(self, captions: Sequence[str]) -> MaskedCaption:
        """Encodes captions; one that is too long for T tokens is truncated, an empty one is the null caption."""
        ids = self._tokenizer.null_ids.repeat(len(captions), 1)
        for row, caption in zip(ids, captions, strict=True):
            if not caption.strip():
                continue
            blank = torch.tensor([self._space.mask_id])
            parts: list[Tensor] = []
            for number, text in enumerate(caption.split(BLANK)):
                parts += [blank] if number else []
                parts += [self.pieces(text)] if text.strip() else []
            room = self._space.length - len(self._lead) - len(self._tail)
            whole = torch.cat([self._lead, torch.cat(parts)[:room], self._tail])
            row.fill_(self._space.pad_id)
            row[: len(whole)] = whole
        return MaskedCaption(ids, ids == self._space.mask_id)

    def write(self, caption: str, predicted: Int64[Tensor, "N"], marks: tuple[str, str] = ("", "")) -> str:
        """Returns the caption with the tokens `predicted` in its blanks, each between `marks`; a blank that was
        truncated stays."""
        words = iter(self._tokenizer.decode(predicted[:, None])) if len(predicted) else iter(())
        before, *after = caption.split(BLANK)
        filled = [before]
        for text in after:
            word = next(words, None)
            filled += [BLANK if word is None else f"{marks[0]}{word}{marks[1]}", text]
        return " ".join("".join(filled).split())

    def mark(self, ids: Int64[Tensor, "T"], chosen: Bool[Tensor, "T"], marks: tuple[str, str]) -> str:
        """Decodes `ids` with its `chosen` tokens between `marks`; consecutive ones share a pair of marks."""
        text = self._words.where(ids[None])[0] | chosen
        runs: list[tuple[bool, list[int]]] = []
        for token, is_text, is_chosen in zip(ids.tolist(), text.tolist(), chosen.tolist(), strict=True):
            if not is_text:
                continue
            if not runs or runs[-1][0] != is_chosen:
                runs.append((is_chosen, []))
            runs[-1][1].append(token)
        decoded = [(marked, self._tokenizer.decode(torch.tensor([tokens]))[0]) for marked, tokens in runs]
        return " ".join(f"{marks[0]}{words}{marks[1]}" if marked else words for marked, words in decoded)
