"""What a text length cuts off: which words, of how many captions, and what helps."""

import re

import pytest

from parti.sampling.generate import SamplingConfig
from parti.text import SavedTokenizerConfig, TextTokenizer, TextTokenizerConfig, UnigramConfig
from parti.text.truncation import about_cut_captions, about_cut_prompts
from tests.tiny import tiny_text_to_image

LONG = "a small red circle above a large blue square in front of a house with many windows"
CAPTIONS = [*(f"{LONG}, {number}" for number in range(25)), *["a dog"] * 75]


def tokenizers(length: int) -> list[tuple[TextTokenizer, TextTokenizerConfig | UnigramConfig]]:
    configs = (TextTokenizerConfig(vocab_size=300, length=length), UnigramConfig(vocab_size=300, length=length))
    return [(TextTokenizer.train(CAPTIONS, config), config) for config in configs]


@pytest.mark.parametrize("length", [4, 9, 16])
@pytest.mark.parametrize("text", [LONG, "  zwei  Größen und ein 猫 auf der\tStraße von früher", "x" * 80])
def test_the_lost_words_are_those_behind_the_cut(text: str, length: int) -> None:
    for tokenizer, _ in tokenizers(length):
        (lost,) = tokenizer.lost_text([text])
        assert lost
        assert text.strip().endswith(lost)
        kept = text[: len(text.rstrip()) - len(lost)]
        assert not kept or kept[-1].isspace(), "whole words, a broken one counts as lost"
        assert not any(tokenizer.is_cut([kept])), "what is left is read whole"
        read = tokenizer.decode(tokenizer.encode([text]))[0]
        assert read.lower().split()[: len(kept.split())] == kept.lower().split()


def test_nothing_is_lost_of_what_fits() -> None:
    for tokenizer, config in tokenizers(200):
        assert tokenizer.lost_text([LONG, "", "a"]) == ["", "", ""]
        assert about_cut_captions(CAPTIONS, tokenizer, config) == []
        assert about_cut_captions([], tokenizer, config) == []
        assert about_cut_prompts([LONG], tokenizer) == []


def test_a_run_is_told_how_many_by_how_much_and_what_helps() -> None:
    for tokenizer, config in tokenizers(8):
        (line,) = about_cut_captions(CAPTIONS, tokenizer, config)
        assert line.startswith("25 of 100 captions (25%) are longer than the 8 tokens")
        (advised,) = re.findall(r"text\.length (\d+) keeps", line)
        assert tokenizer.lost_text([LONG])[0][:20] in line
        longer = TextTokenizer.train(CAPTIONS, config.model_copy(update={"length": int(advised)}))
        assert sum(longer.is_cut(CAPTIONS)) <= 1, "the advice holds"
    (line,) = about_cut_captions(CAPTIONS, tokenizer, SavedTokenizerConfig(folder="runs/words"))
    assert "a vocabulary with a larger text.length than that of runs/words" in line


def test_prompts_are_told_once_each_with_their_lost_words() -> None:
    tokenizer, _ = tokenizers(8)[0]
    (line,) = about_cut_prompts([LONG, "a dog", LONG], tokenizer)
    words = int(re.findall(r"the last (\d+) words", line)[0])
    assert repr(" ".join(LONG.split()[-words:])) in line


def test_the_pipeline_warns() -> None:
    model = tiny_text_to_image(SamplingConfig())
    with pytest.warns(UserWarning, match=r"the model reads 8 tokens .* not seen: a prompt that has far too many words"):
        model(f"a prompt that has far too many words {LONG}")
