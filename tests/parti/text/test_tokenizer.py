"""Learned vocabularies, BPE and unigram: round trips, padding, cutting, special tokens, files."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer

from parti.text.tokenizer import (
    NULL_ID,
    PAD_ID,
    TEXT_TOKENIZER_FILE,
    TextTokenizer,
    TextTokenizerConfig,
    UnigramConfig,
)
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.hub.model_folder import ModelFolderError

KINDS = {
    "bpe": TextTokenizerConfig(vocab_size=400, length=64),
    "unigram": UnigramConfig(vocab_size=400, length=64),
}
TEXTS = [
    "a red cat",
    "déjà vu, naïve café",
    "ein grüner Drache über Zürich",
    "红色的猫在桌子上",
    "قطة حمراء",
    "a 🦊 beside a 👩\u200d🚀 and a 🇨🇭 flag",
    "tabs\tand\nlines",
    "\x00 odd \ufffd bytes",
    "<pad> and <null> are words here",
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    """Of either kind, for captions of 64 tokens."""
    return TextTokenizer.train(CAPTIONS, KINDS[request.param])


@pytest.mark.parametrize("text", [*TEXTS, 'a STOP sign, "Grüße" and OpenAI\'s \u2581 <0x41>'])
def test_any_text_survives(text: str, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode([text])
    assert tokenizer.decode(ids) == [text]
    assert tokenizer.is_cut([text]) == [False]


@pytest.mark.parametrize("kind", KINDS)
def test_case_is_kept_unless_the_config_says_otherwise(kind: str) -> None:
    lowered = TextTokenizer.train(CAPTIONS, KINDS[kind].model_copy(update={"lowercase": True}))
    kept = TextTokenizer.train(CAPTIONS, KINDS[kind])
    prompts = ["a RED Cat", "a red cat"]
    assert kept.decode(kept.encode(prompts)) == prompts
    assert lowered.decode(lowered.encode(prompts)) == ["a red cat"] * 2
    assert torch.equal(lowered.encode(prompts)[:1], lowered.encode(prompts)[1:])


def test_a_unigram_vocabulary_takes_no_more_tokens_than_sentencepiece_and_few_more_than_bpe() -> None:
    """Words that stand in no other word are pieces too: with SentencePiece's own first guess they were letters."""
    shapes = Shapes(ShapesConfig(), "train", 16)
    captions = [shapes.captions(index)[0] for index in range(2000)]
    vocabularies = {
        kind: TextTokenizer.train(captions, config.model_copy(update={"vocab_size": 2000}))
        for kind, config in KINDS.items()
    }
    mean = {
        kind: sum(count.tokens for count in vocabulary.count_tokens(captions)) / len(captions)
        for kind, vocabulary in vocabularies.items()
    }
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=file, vocab_size=2000, hard_vocab_limit=False, minloglevel=2
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    assert mean["unigram"] <= sum(map(len, theirs.encode(captions))) / len(captions)
    assert mean["unigram"] == pytest.approx(mean["bpe"], rel=0.05)
    assert mean["unigram"] < 12


def test_ids_are_int64_in_range_and_padded_to_the_length(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(CAPTIONS)
    assert ids.shape == (8, 64)
    assert ids.dtype == torch.int64
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size <= 400
    assert tokenizer.pad_id == PAD_ID
    for row in ids:
        words = int((row != PAD_ID).sum())
        assert 0 < words < 64
        assert (row[:words] != PAD_ID).all()
    assert len({tuple(row.tolist()) for row in ids}) == 8


def test_a_word_of_the_captions_becomes_one_token() -> None:
    ids = tiny_text_tokenizer().encode(["a red cat"])[0]
    assert (ids != PAD_ID).sum() == 3


def test_width_and_outer_space_do_not_matter(tokenizer: TextTokenizer) -> None:
    first, *others = tokenizer.encode(["a red cat", "  a red\u00a0cat\n", "a \uff52ed cat"])
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("blank", ["", "   ", "\n\t", "\u3000"])
def test_a_blank_caption_is_the_null_caption(blank: str, tokenizer: TextTokenizer) -> None:
    assert torch.equal(tokenizer.encode([blank])[0], tokenizer.null_ids)
    assert tokenizer.decode(tokenizer.encode([blank])) == [""]


def test_the_null_caption_is_one_visible_token(tokenizer: TextTokenizer) -> None:
    assert tokenizer.null_ids.tolist() == [NULL_ID] + [PAD_ID] * 63


@pytest.mark.parametrize("text", ["<pad>", "<null>", "<pad><pad>", "a <pad> cat"])
def test_no_caption_can_spell_a_special_token(text: str, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode([text])[0]
    words = ids[ids != PAD_ID]
    assert len(words) > 0
    assert NULL_ID not in words.tolist()
    assert (ids[: len(words)] != PAD_ID).all()


def test_a_longer_caption_is_cut_and_counted() -> None:
    tokenizer = tiny_text_tokenizer()
    exact = "a red cat a blue dog a red"  # eight words, one token each
    assert tokenizer.is_cut([exact, f"{exact} hat", "a red cat", ""]) == [False, True, False, False]
    ids, cut = tokenizer.tokenize([exact, f"{exact} hat", "a red cat", ""])
    assert cut == [False, True, False, False]
    assert torch.equal(ids, tokenizer.encode([exact, f"{exact} hat", "a red cat", ""]))
    assert torch.equal(ids[0], ids[1])
    assert tokenizer.decode(tokenizer.encode([f"{exact} hat"])) == [exact]


def test_no_caption_gives_no_row(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode([]).shape == (0, 64)


def divisions(word: str) -> Iterator[list[str]]:
    """Every way to cut a word into pieces."""
    yield [word]
    for end in range(1, len(word)):
        yield from ([word[:end], *rest] for rest in divisions(word[end:]))


def test_unigram_takes_the_most_probable_pieces(tmp_path: Path) -> None:
    captions = [f"{caption} {caption[2:]}s and catdogs" for caption in CAPTIONS]
    TextTokenizer.train(captions, KINDS["unigram"]).save_pretrained(tmp_path)
    path = tmp_path / TEXT_TOKENIZER_FILE
    scores = dict(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])
    assert max(map(len, scores)) > 4, "it learned pieces"
    raw = Tokenizer.from_file(str(path))
    raw.no_padding()
    for word in ("red", "catdog", "hatdogs", "bluejug", "unseen"):
        pieces = raw.encode(word).tokens
        assert "".join(pieces) == f"Ġ{word}"
        possible = [parts for parts in divisions(f"Ġ{word}") if all(part in scores for part in parts)]
        best = max(sum(scores[part] for part in parts) for parts in possible)
        assert sum(scores[piece] for piece in pieces) == pytest.approx(best)


def test_unigram_numbers_its_pieces_alike_each_time() -> None:
    captions = [f"{caption} {text}" for caption in CAPTIONS for text in TEXTS]
    first, second = (TextTokenizer.train(captions, KINDS["unigram"]) for _ in range(2))
    assert torch.equal(first.encode([*captions, *TEXTS]), second.encode([*captions, *TEXTS]))


def test_training_is_deterministic(tmp_path: Path) -> None:
    captions = [f"{caption} {text}" for caption in CAPTIONS for text in TEXTS]
    for name in ("first", "second"):
        TextTokenizer.train(iter(captions), KINDS["bpe"]).save_pretrained(tmp_path / name)
    first, second = ((tmp_path / name / TEXT_TOKENIZER_FILE).read_bytes() for name in ("first", "second"))
    assert first == second


def test_the_vocabulary_has_a_bound() -> None:
    captions = [f"{caption} {text}" for caption in CAPTIONS for text in TEXTS]
    assert TextTokenizer.train(captions, TextTokenizerConfig(vocab_size=270)).vocab_size == 270
    few = TextTokenizer.train(["ab"], TextTokenizerConfig(vocab_size=16_000))
    assert few.vocab_size < 265  # two special tokens, 256 bytes, and what few letters merge to
    assert 258 < TextTokenizer.train(captions, UnigramConfig(vocab_size=270)).vocab_size <= 270


def test_a_saved_tokenizer_comes_back_with_its_length(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    before = tokenizer.encode([*CAPTIONS, *TEXTS])
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(tokenizer.encode([*CAPTIONS, *TEXTS]), before)  # saving changed nothing

    again = TextTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert again.length == 64
    assert again.pad_id == tokenizer.pad_id
    assert torch.equal(again.null_ids, tokenizer.null_ids)
    assert again.vocab_size == tokenizer.vocab_size
    assert torch.equal(again.encode([*CAPTIONS, *TEXTS]), before)
    assert again.is_cut(TEXTS) == tokenizer.is_cut(TEXTS)
    assert again.decode(before) == tokenizer.decode(before)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=f"no text tokenizer in .*: {TEXT_TOKENIZER_FILE} is missing"):
        TextTokenizer.from_pretrained(tmp_path)

    tiny_text_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / TEXT_TOKENIZER_FILE
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(ModelFolderError, match=f"{TEXT_TOKENIZER_FILE} is damaged"):
        TextTokenizer.from_pretrained(tmp_path)

    path.write_text(json.dumps(json.loads(whole) | {"truncation": None}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="has no truncation length"):
        TextTokenizer.from_pretrained(tmp_path)

    path.write_text(whole.replace("<pad>", "<gap>", 1), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=f"{TEXT_TOKENIZER_FILE} is damaged: "):
        TextTokenizer.from_pretrained(tmp_path)


def test_a_file_from_before_padding_was_in_it_is_read(tmp_path: Path) -> None:
    tokenizer = tiny_text_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / TEXT_TOKENIZER_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"padding": None}), encoding="utf-8")
    (tmp_path / "SHA256SUMS").unlink()  # nor were there checksums
    again = TextTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode([*CAPTIONS, ""]), tokenizer.encode([*CAPTIONS, ""]))
