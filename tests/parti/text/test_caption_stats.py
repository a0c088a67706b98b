"""Captions in tokens: counted whole, cut where the model cuts them, unknown text told."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from parti.text.caption_stats import caption_metrics
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.tiny import CAPTIONS, tiny_text_tokenizer


def word_tokenizer(length: int = 4) -> TextTokenizer:
    """Words a, b, c with a token before and one behind; all else is unknown."""
    tokens = ["<pad>", "<null>", "[UNK]", "<s>", "</s>", "a", "b", "c"]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 4)])
    return TextTokenizer(tokenizer, length, "<pad>")


def test_tokens_are_counted_before_the_cut_and_agree_with_it() -> None:
    tokenizer = tiny_text_tokenizer()
    captions = [" ".join(CAPTIONS[:count]) for count in range(1, 9)] + [""]
    counts = [count.tokens for count in tokenizer.count_tokens(captions)]
    assert [count > tokenizer.length for count in counts] == tokenizer.is_cut(captions)
    longer = TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=100))
    used = (longer.tokenize(captions).ids != longer.pad_id).sum(1).tolist()
    assert counts[:-1] == used[:-1]
    assert counts[-1] == 0
    assert not any(count.unknown for count in tokenizer.count_tokens(["ネコ ☃"])), "bytes know everything"


def test_special_tokens_count_and_unknown_text_is_told() -> None:
    counts = word_tokenizer().count_tokens(["a", "a b c", "a x", "y z"])
    assert [tuple(count) for count in counts] == [(3, 0), (5, 0), (4, 1), (4, 2)]


def test_metrics() -> None:
    metrics = caption_metrics(["a", "a", "a b c", "b x", "a b a b c"], word_tokenizer())
    assert (metrics.captions, metrics.different, metrics.length) == (5, 4, 4)
    assert (metrics.fewest, metrics.median, metrics.most, metrics.longest) == (3, 4, 7, "a b a b c")
    assert metrics.cut == 2
    assert metrics.lost_share == pytest.approx((1 + 3) / (3 + 3 + 5 + 4 + 7))
    assert metrics.alphabet == {" ": 7, "a": 5, "b": 4, "c": 2, "x": 1}
    assert list(metrics.alphabet) == [" ", "a", "b", "c", "x"]
    assert metrics.rare == ["c", "x"]
    assert metrics.unknown == {"x": 1}
    assert metrics.with_unknown == 1


def test_no_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="no captions"):
        caption_metrics([], word_tokenizer())
