"""Vocabularies learned from the captions at hand: byte-pair merges, and the pieces of a unigram language model.

Both work on the bytes of NFKC, lower-cased text: any text has ids, none is unknown. Unigram (Kudo, 1804.10959) is what
Parti's SentencePiece vocabulary is (arXiv 2206.10789, section 2.2). Departure: SentencePiece works on characters and
falls back to bytes for rare ones. The `tokenizers` library does the work.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD_TOKEN, NULL_TOKEN = "<pad>", "<null>"
"""The first two tokens of a learned vocabulary: padding, and the one that stands for 'no caption'."""

_NEVER = -1000.0
"""Log-probability of the special pieces: text is never divided into them."""


def learn_bpe(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair merges: the most frequent pairs of neighbours become one token, again and again."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, NULL_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def learn_unigram(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Pieces with probabilities: a text is divided the most probable way. The library prunes a large first guess."""
    tokenizer = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, NULL_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    pieces = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    # The library numbers bytes that no caption has in an order that changes from call to call.
    learned = [(piece, pieces[piece]) for piece in sorted(pieces) if piece not in (PAD_TOKEN, NULL_TOKEN)]
    tokenizer.model = models.Unigram([(PAD_TOKEN, _NEVER), (NULL_TOKEN, _NEVER), *learned], None, False)
    return tokenizer


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
