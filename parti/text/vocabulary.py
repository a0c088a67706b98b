"""Trains vocabularies on captions: byte-pair merges, and the pieces of a unigram language model.

Both work on the bytes of NFKC text, lower-cased or not: any text has ids, none is unknown. Unigram (Kudo, 1804.10959)
is what Parti's SentencePiece vocabulary is (arXiv 2206.10789, section 2.2), and `sentencepiece` learns it; that of
`tokenizers` finds far worse pieces (docs/log.md, 2026-12-01). Departure: SentencePiece works on characters and falls
back to bytes for rare ones; here pieces are of bytes, which is the same for English. `tokenizers` applies the model.
"""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD_TOKEN, NULL_TOKEN = "<pad>", "<null>"
"""The first two tokens of a learned vocabulary: padding, and the null token for 'no caption'."""

_LONGEST_PIECE = 16
"""Largest length of a piece in bytes, as in SentencePiece."""
_SEEDS = 1_000_000
"""Number of seed pieces, as in SentencePiece."""
_WORDS_OF_SEEDS = 200_000
"""Number of most frequent words from which seed pieces are taken: some ten million candidates."""
_NEVER = -1000.0
"""Log-probability of the special pieces, which text is never segmented into."""


def learn_bpe(captions: Iterable[str], vocab_size: int, lowercase: bool = False) -> Tokenizer:
    """Trains byte-pair merges: the most frequent adjacent pair becomes one token, repeatedly."""
    tokenizer = _byte_level(models.BPE(), lowercase)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, NULL_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def learn_unigram(captions: Iterable[str], vocab_size: int, lowercase: bool = False) -> Tokenizer:
    """Trains a unigram language model, with the most probable segmentation; SentencePiece prunes a large seed."""
    tokenizer = _byte_level(models.BPE(), lowercase)  # the model is replaced below
    words = Counter(
        word
        for caption in captions
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(caption))
    )
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    seen = set("".join(words))
    learned = _learned_pieces(words, vocab_size - 2 - len(alphabet - seen)) if words else {}
    # Unseen bytes get SentencePiece's score of an unknown character.
    rare = min(learned.values(), default=0.0) - 10.0
    pieces = learned | dict.fromkeys(sorted(alphabet - learned.keys()), rare)
    vocabulary = [(PAD_TOKEN, _NEVER), (NULL_TOKEN, _NEVER), *pieces.items()]
    tokenizer.model = models.Unigram(vocabulary, None, False)
    tokenizer.add_special_tokens([PAD_TOKEN, NULL_TOKEN])  # not part of text, and skipped in decoding
    return tokenizer


def _learned_pieces(words: Counter[str], count: int) -> dict[str, float]:
    """Returns up to `count` pieces of these words with their log-probabilities, the most probable first, including all
    single bytes of the words."""
    import sentencepiece

    lines = (f"{word}\t{times}" for word, times in _most_first(words))
    file = io.BytesIO()
    with TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds.tsv"
        seeds.write_text("".join(f"{piece}\t{times}\n" for piece, times in _seeds(words)), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=file,
            model_type="unigram",
            input_format="tsv",
            seed_sentencepieces_file=str(seeds),
            vocab_size=count + 1,  # plus the unknown token
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            split_by_unicode_script=False,  # words are split already
            split_by_number=False,
            max_sentencepiece_length=_LONGEST_PIECE,
            max_sentence_length=1 << 20,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    return {
        model.id_to_piece(number): model.get_score(number)
        for number in range(model.get_piece_size())
        if not model.is_unknown(number)
    }


def _seeds(words: Counter[str]) -> list[tuple[str, int]]:
    """Returns the seed pieces: all single bytes, and pieces that occur at least twice, those first that cover most
    text.

    SentencePiece's own seed counts each word once, however often it occurs, so a word that few others contain is not a
    piece: `diamond` became eight tokens in captions of which every second has one.
    """
    singles, longer = Counter[str](), Counter[str]()
    for word, times in _most_first(words)[:_WORDS_OF_SEEDS]:
        for begin in range(len(word)):
            singles[word[begin]] += times
            for end in range(begin + 2, min(begin + _LONGEST_PIECE, len(word)) + 1):
                longer[word[begin:end]] += times
    for word in words:
        singles.update(dict.fromkeys(word, 0))
    pieces = [(piece, times) for piece, times in longer.items() if times > 1]
    pieces.sort(key=lambda piece: (-piece[1] * len(piece[0]), piece[0]))
    return [*((byte, max(1, times)) for byte, times in _most_first(singles)), *pieces[:_SEEDS]]


def _most_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _byte_level(model: models.Model, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    cases = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *cases, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
