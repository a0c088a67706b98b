"""BPE dropout: without any, the library's own ids; with it, other pieces of the same text, as the draw says."""

import random

import pytest
import torch

from parti.pairs import PairTokenizer
from parti.text.tokenizer import NULL_ID, TextTokenizer, TextTokenizerConfig, UnigramConfig
from tests.tiny import CAPTIONS, pairs, tiny_image_tokenizer, tiny_text_tokenizer
from vqgan.data.batch import Batch

TEXTS = [*CAPTIONS, "Zürich 🦊, twice", "redblue catdogs", "", "  "]


def long_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=40))


def generators(count: int, seed: int = 0) -> list[random.Random]:
    return [random.Random(f"{seed} {row}") for row in range(count)]


def test_no_dropout_gives_the_ids_of_the_library() -> None:
    for tokenizer in (long_tokenizer(), tiny_text_tokenizer()):
        texts = [*TEXTS, "a red cat a blue dog a red hat a blue jug"]
        ours, theirs = tokenizer.tokenize_with_dropout(texts, 0.0, generators(len(texts))), tokenizer.tokenize(texts)
        assert torch.equal(ours.ids, theirs.ids)
        assert ours.cut == theirs.cut


def test_dropout_divides_the_same_text_otherwise() -> None:
    tokenizer = long_tokenizer()
    plain = tokenizer.tokenize(TEXTS)
    dropped = tokenizer.tokenize_with_dropout(TEXTS, 0.5, generators(len(TEXTS)))
    assert tokenizer.decode(dropped.ids) == tokenizer.decode(plain.ids)
    assert not torch.equal(dropped.ids, plain.ids)
    assert dropped.ids[-1, 0] == NULL_ID
    assert torch.equal(tokenizer.tokenize_with_dropout(TEXTS, 0.5, generators(len(TEXTS))).ids, dropped.ids)
    assert not torch.equal(tokenizer.tokenize_with_dropout(TEXTS, 0.5, generators(len(TEXTS), 1)).ids, dropped.ids)


def test_a_merge_is_left_out_as_often_as_configured() -> None:
    tokenizer = TextTokenizer.train(["xy"] * 4, TextTokenizerConfig(vocab_size=259, length=8))
    assert (tokenizer.encode(["xy"]) != 0).sum() == 2, "a space and two letters, of which two are merged"
    lengths = (tokenizer.tokenize_with_dropout(["xy"] * 2000, 0.1, generators(2000)).ids != 0).sum(1)
    assert set(lengths.tolist()) == {2, 3}
    assert (lengths == 3).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_a_batch_is_divided_alike_however_it_is_split() -> None:
    tokenizers = PairTokenizer(long_tokenizer(), tiny_image_tokenizer(), bpe_dropout=0.5)
    whole = tokenizers(pairs(8), None, (7, 3, 0)).text_ids
    batch = pairs(8)
    parts = [
        tokenizers(Batch(batch.images[s : s + 2], batch.captions[s : s + 2], batch.names[s : s + 2]), None, (7, 3, s))
        for s in range(0, 8, 2)
    ]
    assert torch.equal(torch.cat([part.text_ids for part in parts]), whole)
    assert not torch.equal(tokenizers(pairs(8), None, (7, 4, 0)).text_ids, whole)
    assert torch.equal(tokenizers(pairs(8)).text_ids, tokenizers.text.encode(CAPTIONS)), "evaluation drops nothing"


def test_training_without_a_draw_and_other_vocabularies_are_errors() -> None:
    tokenizers = PairTokenizer(long_tokenizer(), tiny_image_tokenizer(), bpe_dropout=0.5)
    with pytest.raises(ValueError, match=r"a function of \(seed, step, row\)"):
        tokenizers(pairs(8), torch.zeros(8, dtype=torch.bool))
    unigram = TextTokenizer.train(CAPTIONS, UnigramConfig(vocab_size=300, length=8))
    with pytest.raises(ValueError, match="merges are dropped from a BPE vocabulary, this is a Unigram"):
        unigram.tokenize_with_dropout(CAPTIONS, 0.5, generators(8))


@pytest.mark.parametrize("probability", [0.0, 1e-9])
def test_a_caption_that_just_fits_is_not_cut(probability: float) -> None:
    tokenizer = tiny_text_tokenizer()
    exact = "a red cat a blue dog a red"  # eight words, one token each, in a length of eight
    texts = [exact, f"{exact} hat", "a red cat"]
    assert (tokenizer.encode([exact]) != tokenizer.pad_id).all()
    assert tokenizer.tokenize_with_dropout(texts, probability, generators(3)).cut == [False, True, False]
