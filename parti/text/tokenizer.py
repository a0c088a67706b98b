"""TextTokenizer: captions to ids and back, for learned vocabularies and those of pretrained text models.

Captions become exactly `length` ids: longer ones are truncated (and counted), shorter ones padded. The null caption,
for guidance and missing captions, is never a row of only padding, which could not be attended to.
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
from parti.text.components import check_file, check_runs, is_panic
from parti.text.growth import LONGEST, check_growth
from parti.text.vocabulary import NULL_TOKEN, PAD_TOKEN, learn_bpe, learn_unigram
from vqgan.config.schema import Config
from vqgan.hub.model_folder import ModelFolderError, check_unchanged
from vqgan.system.bounded_file import read_bounded
from vqgan.system.checksums import add_checksums

PAD_ID, NULL_ID = 0, 1
"""Ids of a learned vocabulary: padding, and the null token for 'no caption'."""

TEXT_TOKENIZER_FILE = "text_tokenizer.json"
_LARGEST_FILE = 128 << 20
"""Largest size in bytes; the largest published vocabulary has 33 MB."""


class TextTokenizerConfig(
    Config, fixed=("kind", "vocab_size", "length", "training_captions", "lowercase"), may_change=("dropout",)
):
    """A byte-pair vocabulary trained from the captions."""

    kind: Literal["bpe"] = "bpe"
    """Byte-pair merges, over bytes."""
    vocab_size: int = Field(16_000, gt=258)
    """Upper bound of the vocabulary: 2 special tokens, 256 bytes and merges. Few captions give fewer merges."""
    length: int = Field(128, gt=0, le=LONGEST)
    """Text positions T; longer captions are truncated."""
    training_captions: int = Field(100_000, gt=0)
    """Number of captions that the vocabulary is trained on, from all over the training split."""
    lowercase: bool = False
    """Lower-case all text, prompts too: fewer tokens, but the case of letters in an image is lost. DALL-E does it."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """BPE dropout: fraction of the merges that are skipped in training, so that words are seen in pieces; DALL-E
    0.1."""


class UnigramConfig(Config, fixed=("kind", "vocab_size", "length", "training_captions", "lowercase")):
    """A unigram vocabulary trained from the captions by SentencePiece, as Parti's."""

    kind: Literal["unigram"] = "unigram"
    """Pieces of a unigram language model, over bytes."""
    vocab_size: int = Field(16_000, gt=258)
    """Upper bound of the vocabulary: 2 special tokens, 256 bytes and pieces. Few captions give fewer pieces."""
    length: int = Field(128, gt=0, le=LONGEST)
    """Text positions T; longer captions are truncated."""
    training_captions: int = Field(100_000, gt=0)
    """Number of captions that the vocabulary is trained on, from all over the training split."""
    lowercase: bool = False
    """Lower-case all text, prompts too: fewer tokens, but the case of letters in an image is lost. DALL-E does it."""


LEARNED: dict[str, Callable[[Iterable[str], int, bool], Tokenizer]] = {"bpe": learn_bpe, "unigram": learn_unigram}
"""Training functions of vocabularies, by the config's `kind`."""


class TokenizedText(NamedTuple):
    """Ids (B, T) of captions, and which of them were truncated."""

    ids: Int64[Tensor, "B T"]
    cut: list[bool]


class TokenCount(NamedTuple):
    """Number of tokens of a whole caption, special ones included, and how many are outside the vocabulary."""

    tokens: int
    unknown: int


class TextTokenizer:
    """Encodes captions to ids (B, T) int64 and back, with a vocabulary whose padding token is `pad`.

    Raises ValueError if it has no such token, or none for 'no caption'.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, pad: str) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self.pad_id = _id_of(tokenizer, pad)
        # Not their number: a pretrained vocabulary may have gaps.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        # A caption that spells "<pad>" is text: as the special token it would be a fully masked row.
        tokenizer.encode_special_tokens = True
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=self.pad_id, pad_token=pad)
        self._null_ids = torch.tensor(tokenizer.encode("").ids)
        if (self._null_ids == self.pad_id).all():
            self._null_ids[0] = _id_of(tokenizer, NULL_TOKEN)

    @classmethod
    def train(cls, captions: Iterable[str], config: TextTokenizerConfig | UnigramConfig) -> "TextTokenizer":
        """Trains a vocabulary on `captions`."""
        return cls(LEARNED[config.kind](captions, config.vocab_size, config.lowercase), config.length, PAD_TOKEN)

    @property
    def null_ids(self) -> Int64[Tensor, "T"]:
        """The ids that stand for 'no caption': what the vocabulary makes of empty text, or else its null token."""
        return self._null_ids.clone()

    def tokens(self) -> dict[str, int]:
        """The vocabulary: each token, special ones included, with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def tokenize(self, captions: Sequence[str]) -> TokenizedText:
        """Returns the ids of each caption, truncated or padded to T, and which were truncated. A blank caption becomes
        the null caption."""
        encodings = self._tokenizer.encode_batch(list(captions))
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64).view(len(captions), self.length)
        blank = torch.tensor([not caption.strip() for caption in captions], dtype=torch.bool)
        ids[blank | (ids == self.pad_id).all(1)] = self._null_ids
        return TokenizedText(ids, [bool(encoding.overflowing) for encoding in encodings])

    def tokenize_with_dropout(
        self, captions: Sequence[str], probability: float, generators: Sequence[random.Random]
    ) -> TokenizedText:
        """`tokenize` with BPE dropout; each caption has its own generator.

        Raises ValueError if the vocabulary is not BPE.
        """
        ids, cut = self.null_ids.repeat(len(captions), 1), []
        for row, caption, generator in zip(ids, captions, generators, strict=True):
            pieces = self._merge_dropout.encode(caption, probability, generator)
            cut.append(len(pieces) > self.length)
            if pieces:
                row[: len(pieces)] = torch.tensor(pieces[: self.length])
        return TokenizedText(ids, cut)

    def encode(self, captions: Sequence[str]) -> Int64[Tensor, "B T"]:
        """Returns the ids of `tokenize`."""
        return self.tokenize(captions).ids

    def is_cut(self, captions: Sequence[str]) -> list[bool]:
        """Returns which captions are longer than T tokens."""
        return self.tokenize(captions).cut

    def lost_text(self, captions: Sequence[str]) -> list[str]:
        """Returns the truncated end of each caption, including a word that is split; "" if it fits."""
        lost = []
        for caption, encoding in zip(captions, self._tokenizer.encode_batch(list(captions)), strict=True):
            end = max((stop for _, stop in encoding.offsets), default=0) if encoding.overflowing else len(caption)
            while 0 < end < len(caption) and not caption[end - 1].isspace() and not caption[end].isspace():
                end -= 1
            lost.append(caption[end:].strip())
        return lost

    def count_tokens(self, captions: Sequence[str]) -> list[TokenCount]:
        """Counts the tokens of each caption before truncation and padding."""
        encodings = self._whole.encode_batch(list(captions))
        unknown = -1 if self._unknown_id is None else self._unknown_id
        return [TokenCount(len(encoding.ids), encoding.ids.count(unknown)) for encoding in encodings]

    def decode(self, ids: Int64[Tensor, "B T"]) -> list[str]:
        """Decodes each row, without padding and other special tokens."""
        return [text.strip() for text in self._tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)]

    def save_pretrained(self, folder: Path) -> None:
        """Writes `text_tokenizer.json`, which is self-contained also for a pretrained vocabulary, and its checksum."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / TEXT_TOKENIZER_FILE))
        add_checksums(folder, [TEXT_TOKENIZER_FILE])

    @classmethod
    def from_pretrained(cls, folder: Path) -> "TextTokenizer":
        """Loads what `save_pretrained` wrote. Raises ModelFolderError if the file is missing or damaged."""
        path = folder / TEXT_TOKENIZER_FILE
        if not path.is_file():
            raise ModelFolderError(f"no text tokenizer in {folder}: {TEXT_TOKENIZER_FILE} is missing")
        try:
            content = read_bounded(path, _LARGEST_FILE).decode()
            check_file(content)
            tokenizer = Tokenizer.from_str(content)
        except BaseException as error:  # the library raises plain exceptions, and panics
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            raise ModelFolderError(f"{path} is damaged: {' '.join(str(error).split())[:300]}") from None
        truncation, padding = tokenizer.truncation, tokenizer.padding
        if truncation is None:
            raise ModelFolderError(f"{path} has no truncation length; it was not written by save_pretrained")
        # The first version wrote byte-pair vocabularies only, without the padding token.
        pad = PAD_TOKEN if padding is None else padding["pad_token"]
        try:
            check_growth(tokenizer.to_str(), truncation["max_length"])
            check_runs(tokenizer)
            read = cls(tokenizer, truncation["max_length"], pad)
        except ValueError as error:
            raise ModelFolderError(f"{path} is damaged: {error}") from None
        check_unchanged(folder, TEXT_TOKENIZER_FILE)  # last: other errors are more specific
        return read

    @cached_property
    def _whole(self) -> Tokenizer:
        """Returns the tokenizer without truncation and padding."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _unknown_id(self) -> int | None:
        """Id of text outside the vocabulary; None if there is none, as with bytes."""
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
