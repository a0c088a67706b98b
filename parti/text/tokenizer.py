"""Byte-pair text tokenizer trained on the captions at hand (the `tokenizers` library does the work).

Lower-cased, byte-level: any text has ids, none is unknown. Captions become exactly `length` ids: longer ones are
cut (and can be counted with `is_cut`), shorter ones padded.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from vqgan.config import Config
from vqgan.model_folder import ModelFolderError

PAD_ID, NULL_ID = 0, 1
"""Padding, and the one token that stands for 'no caption' (guidance's unconditional side)."""

TEXT_TOKENIZER_FILE = "text_tokenizer.json"


class TextTokenizerConfig(Config):
    """A BPE vocabulary trained from the captions."""

    vocab_size: int = Field(16_000, gt=258)
    """Upper bound of the vocabulary: 2 special tokens, 256 bytes and merges. Few captions give fewer merges."""
    length: int = Field(128, gt=0)
    """Text positions T; longer captions are cut."""
    training_captions: int = Field(100_000, gt=0)
    """Captions that the vocabulary is trained on, from the start of the training split."""


class TextTokenizer:
    """Captions to ids (B, T) int64 and back."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.length = length
        self._tokenizer = tokenizer
        # A caption that spells "<pad>" is text: as the special token it would be a row that nobody can attend to.
        tokenizer.encode_special_tokens = True

    @classmethod
    def train(cls, captions: Iterable[str], config: TextTokenizerConfig) -> "TextTokenizer":
        """Learn merges from `captions`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=["<pad>", "<null>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer, config.length)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._tokenizer.get_vocab_size()

    @property
    def null_ids(self) -> Int64[Tensor, "T"]:
        """The ids that stand for 'no caption': the null token, then padding. Never an all-padded row."""
        ids = torch.full((self.length,), PAD_ID)
        ids[0] = NULL_ID
        return ids

    def encode(self, captions: Sequence[str]) -> Int64[Tensor, "B T"]:
        """Ids of each caption, cut or padded to T. A blank caption becomes the null caption."""
        rows = self.null_ids.repeat(len(captions), 1)
        for row, encoding in zip(rows, self._encode(captions), strict=True):
            if encoding:
                row[: len(encoding)] = torch.tensor(encoding[: self.length])
        return rows

    def is_cut(self, captions: Sequence[str]) -> list[bool]:
        """Which captions are longer than T tokens."""
        return [len(encoding) > self.length for encoding in self._encode(captions)]

    def decode(self, ids: Int64[Tensor, "B T"]) -> list[str]:
        """The text of each row, without padding."""
        return [text.strip() for text in self._tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)]

    def save_pretrained(self, folder: Path) -> None:
        """Write `text_tokenizer.json` into `folder`; the length is kept by the file's truncation setting."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.enable_truncation(self.length)
        self._tokenizer.save(str(folder / TEXT_TOKENIZER_FILE))
        self._tokenizer.no_truncation()

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
        truncation = tokenizer.truncation
        if truncation is None:
            raise ModelFolderError(f"{path} has no truncation length; it was not written by save_pretrained")
        length = truncation["max_length"]
        tokenizer.no_truncation()
        return cls(tokenizer, length)

    def _encode(self, captions: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
