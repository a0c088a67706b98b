"""Captions to ids and back: one face for learned vocabularies and for those of pretrained text models.

Captions become exactly `length` ids: longer ones are cut (and counted), shorter ones padded. The null caption, which
guidance and missing captions need, is never a row of padding alone: nobody could attend to it.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor

from parti.text.bpe_dropout import BPEDropout
from parti.text.growth import check_growth
from parti.text.vocabulary import NULL_TOKEN, PAD_TOKEN, learn_bpe, learn_unigram
from vqgan.config.schema import Config
from vqgan.hub.model_folder import ModelFolderError, check_unchanged
from vqgan.system.checksums import add_checksums

PAD_ID, NULL_ID = 0, 1
"""Ids of a learned vocabulary: padding, and the one token that stands for 'no caption'."""

TEXT_TOKENIZER_FILE = "text_tokenizer.json"


class TextTokenizerConfig(
    Config, fixed=("kind", "vocab_size", "length", "training_captions", "lowercase"), may_change=("dropout",)
):
    """A byte-pair vocabulary trained from the captions."""

    kind: Literal["bpe"] = "bpe"
    """Byte-pair merges, over bytes."""
    vocab_size: int = Field(16_000, gt=258)
    """Upper bound of the vocabulary: 2 special tokens, 256 bytes and merges. Few captions give fewer merges."""
    length: int = Field(128, gt=0)
    """Text positions T; longer captions are cut."""
    training_captions: int = Field(100_000, gt=0)
    """Captions that the vocabulary is trained on, from all over the training split."""
    lowercase: bool = False
    """Read all text in lower case, prompts too: fewer tokens, but letters in an image lose their case. DALL-E does."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """BPE dropout: share of the merges that are left out in training, so that words are seen in pieces; DALL-E 0.1."""


class UnigramConfig(Config, fixed=("kind", "vocab_size", "length", "training_captions", "lowercase")):
    """A unigram vocabulary trained from the captions by SentencePiece, as Parti's."""

    kind: Literal["unigram"] = "unigram"
    """Pieces of a unigram language model, over bytes."""
    vocab_size: int = Field(16_000, gt=258)
    """Upper bound of the vocabulary: 2 special tokens, 256 bytes and pieces. Few captions give fewer pieces."""
    length: int = Field(128, gt=0)
    """Text positions T; longer captions are cut."""
    training_captions: int = Field(100_000, gt=0)
    """Captions that the vocabulary is trained on, from all over the training split."""
    lowercase: bool = False
    """Read all text in lower case, prompts too: fewer tokens, but letters in an image lose their case. DALL-E does."""


LEARNED: dict[str, Callable[[Iterable[str], int, bool], Tokenizer]] = {"bpe": learn_bpe, "unigram": learn_unigram}
"""How a vocabulary is learned, by its config's `kind`."""


class TokenizedText(NamedTuple):
    """Ids (B, T) of captions, and which of them were longer than T tokens."""

    ids: Int64[Tensor, "B T"]
    cut: list[bool]


class TokenCount(NamedTuple):
    """Tokens of a whole caption, special ones included, and how many of them stand for text outside the vocabulary."""

    tokens: int
    unknown: int


class TextTokenizer:
    """Captions to ids (B, T) int64 and back, with a vocabulary that has the token `pad` for what is not caption.

    Raises ValueError where it has no such token, or none for 'no caption'.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, pad: str) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self.pad_id = _id_of(tokenizer, pad)
        # Not their number: a pretrained vocabulary may leave ids out.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        # A caption that spells "<pad>" is text: as the special token it would be a row that nobody can attend to.
        tokenizer.encode_special_tokens = True
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=self.pad_id, pad_token=pad)
        self._null_ids = torch.tensor(tokenizer.encode("").ids)
        if (self._null_ids == self.pad_id).all():
            self._null_ids[0] = _id_of(tokenizer, NULL_TOKEN)

    @classmethod
    def train(cls, captions: Iterable[str], config: TextTokenizerConfig | UnigramConfig) -> "TextTokenizer":
        """Learn a vocabulary from `captions`."""
        return cls(LEARNED[config.kind](captions, config.vocab_size, config.lowercase), config.length, PAD_TOKEN)

    @property
    def null_ids(self) -> Int64[Tensor, "T"]:
        """The ids that stand for 'no caption': what the vocabulary makes of empty text, or else its null token."""
        return self._null_ids.clone()

    def tokenize(self, captions: Sequence[str]) -> TokenizedText:
        """Ids of each caption, cut or padded to T, and which were cut. A blank caption becomes the null caption."""
        encodings = self._tokenizer.encode_batch(list(captions))
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64).view(len(captions), self.length)
        blank = torch.tensor([not caption.strip() for caption in captions], dtype=torch.bool)
        ids[blank | (ids == self.pad_id).all(1)] = self._null_ids
        return TokenizedText(ids, [bool(encoding.overflowing) for encoding in encodings])

    def tokenize_with_dropout(
        self, captions: Sequence[str], probability: float, generators: Sequence[random.Random]
    ) -> TokenizedText:
        """`tokenize` with BPE dropout; each caption's merges are dropped as its own generator says.

        Raises ValueError where the vocabulary is not BPE.
        """
        ids, cut = self.null_ids.repeat(len(captions), 1), []
        for row, caption, generator in zip(ids, captions, generators, strict=True):
            pieces = self._merge_dropout.encode(caption, probability, generator)
            cut.append(len(pieces) > self.length)
            if pieces:
                row[: len(pieces)] = torch.tensor(pieces[: self.length])
        return TokenizedText(ids, cut)

    def encode(self, captions: Sequence[str]) -> Int64[Tensor, "B T"]:
        """The ids alone."""
        return self.tokenize(captions).ids

    def is_cut(self, captions: Sequence[str]) -> list[bool]:
        """Which captions are longer than T tokens."""
        return self.tokenize(captions).cut

    def lost_text(self, captions: Sequence[str]) -> list[str]:
        """Of each caption what lies behind the cut, a word that is cut in two included; "" of whole ones."""
        lost = []
        for caption, encoding in zip(captions, self._tokenizer.encode_batch(list(captions)), strict=True):
            end = max((stop for _, stop in encoding.offsets), default=0) if encoding.overflowing else len(caption)
            while 0 < end < len(caption) and not caption[end - 1].isspace() and not caption[end].isspace():
                end -= 1
            lost.append(caption[end:].strip())
        return lost

    def count_tokens(self, captions: Sequence[str]) -> list[TokenCount]:
        """Of each caption, before it is cut or padded."""
        encodings = self._whole.encode_batch(list(captions))
        unknown = -1 if self._unknown_id is None else self._unknown_id
        return [TokenCount(len(encoding.ids), encoding.ids.count(unknown)) for encoding in encodings]

    def decode(self, ids: Int64[Tensor, "B T"]) -> list[str]:
        """The text of each row, without padding and other special tokens."""
        return [text.strip() for text in self._tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)]

    def save_pretrained(self, folder: Path) -> None:
        """Write `text_tokenizer.json`: all there is, of a pretrained vocabulary too, the length included; and its
        checksum."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / TEXT_TOKENIZER_FILE))
        add_checksums(folder, [TEXT_TOKENIZER_FILE])

    @classmethod
    def from_pretrained(cls, folder: Path) -> "TextTokenizer":
        """Read what `save_pretrained` wrote. Raises ModelFolderError when the file is missing or damaged."""
        path = folder / TEXT_TOKENIZER_FILE
        if not path.is_file():
            raise ModelFolderError(f"no text tokenizer in {folder}: {TEXT_TOKENIZER_FILE} is missing")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ModelFolderError(f"{path} is damaged: {error}") from None
        truncation, padding = tokenizer.truncation, tokenizer.padding
        if truncation is None:
            raise ModelFolderError(f"{path} has no truncation length; it was not written by save_pretrained")
        # The first version wrote byte-pair vocabularies alone, and did not say what they are padded with.
        pad = PAD_TOKEN if padding is None else padding["pad_token"]
        try:
            check_growth(tokenizer.to_str(), truncation["max_length"])
            read = cls(tokenizer, truncation["max_length"], pad)
        except ValueError as error:
            raise ModelFolderError(f"{path} is damaged: {error}") from None
        check_unchanged(folder, TEXT_TOKENIZER_FILE)  # last: whatever else is wrong says more
        return read

    @cached_property
    def _whole(self) -> Tokenizer:
        """The same without a length."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _unknown_id(self) -> int | None:
        """The id of what is outside the vocabulary; None where nothing is, as with bytes."""
        model = json.loads(self._tokenizer.to_str())["model"]
        token = model.get("unk_token")
        return model.get("unk_id") if token is None else self._tokenizer.token_to_id(token)

    @cached_property
    def _merge_dropout(self) -> BPEDropout:
        return BPEDropout(self._tokenizer)


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the vocabulary has no token {token}")
    return found
