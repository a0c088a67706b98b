"""Captions with blanks: the tokens are those of the whole caption, and what is told is put back where it belongs."""

import pytest
import torch

from parti.fused.inpainting.masked_captions import MaskedCaptionReader
from parti.fused.text_side import text_space
from parti.text.pretrained_tokenizer import PretrainedTokenizerConfig, load_pretrained_tokenizer
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.tiny import CAPTIONS
from tests.tiny_text_models import write_bert


@pytest.fixture(scope="module", params=["learned", "bert"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    if request.param == "learned":
        return TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=16))
    name = str(write_bert(tmp_path_factory.mktemp("bert")))
    return load_pretrained_tokenizer(PretrainedTokenizerConfig(name=name, length=16))


@pytest.mark.parametrize("caption", ["a red cat", "a blue dog beside a hat", "cat"])
def test_blanks_stand_for_the_tokens_of_the_caption(tokenizer: TextTokenizer, caption: str) -> None:
    space = text_space(tokenizer)
    reader = MaskedCaptionReader(tokenizer, space)
    (whole,) = tokenizer.encode([caption])
    words = caption.split()
    for number, word in enumerate(words):
        if len(reader.pieces(word)) > 1:
            continue
        blanked = " ".join([*words[:number], "[MASK]", *words[number + 1 :]])
        ids, masked_captions = reader.read([blanked])
        assert masked_captions.sum() == 1
        assert torch.equal(ids[~masked_captions], whole[None][~masked_captions])
        assert ids[masked_captions] == space.mask_id
        assert reader.write(blanked, whole[None][masked_captions]) == caption
        marked = " ".join([*words[:number], f"[{word}]", *words[number + 1 :]])
        assert reader.write(blanked, whole[None][masked_captions], ("[", "]")) == marked
        assert reader.mark(whole, masked_captions[0], ("[", "]")) == marked
    ids, masked_captions = reader.read([caption, ""])
    assert torch.equal(ids, tokenizer.encode([caption, ""]))
    assert not masked_captions.any()


def test_a_caption_of_blanks_alone_and_one_that_is_too_long(tokenizer: TextTokenizer) -> None:
    space = text_space(tokenizer)
    reader = MaskedCaptionReader(tokenizer, space)
    ids, masked_captions = reader.read(["[MASK] [MASK]", " ".join(["[MASK]"] * 20)])
    encode = int(space.seen(ids[0]).sum()) - 2
    assert masked_captions.sum(1).tolist() == [2, 16 - encode]
    assert space.seen(ids[1]).all()
    (word,) = reader.pieces("cat") if len(reader.pieces("cat")) == 1 else reader.pieces("a")
    assert reader.write("[MASK] [MASK]", word[None]).endswith(" [MASK]")
