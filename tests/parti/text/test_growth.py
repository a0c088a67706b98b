"""Tokenizer files whose rules explode a text are refused before they read one."""

import json
from pathlib import Path
from typing import Any

import pytest

from parti.text import PretrainedTokenizerConfig, TextTokenizer
from parti.text.growth import check_growth
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from parti.text.tokenizer import TEXT_TOKENIZER_FILE
from tests.tiny import tiny_text_tokenizer
from tests.tiny_text_models import WRITERS
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError

DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def rewritten(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 40}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000}},
        {"decoder": {"type": "Sequence", "decoders": [DOUBLING] * 40}},
        {"truncation": {"direction": "Right", "max_length": 2147483648, "strategy": "LongestFirst", "stride": 0}},
    ],
)
def test_a_vocabulary_that_explodes_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    tiny_text_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)
    assert TextTokenizer.from_pretrained(tmp_path).length == 8
    rewritten(tmp_path / TEXT_TOKENIZER_FILE, change)
    with pytest.raises(ModelFolderError, match=r"times as long|positions, 1 to 100000") as caught:
        TextTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pretrained_vocabulary_that_explodes_is_refused(tmp_path: Path) -> None:
    folder = WRITERS["bert"](tmp_path)
    rewritten(folder / "tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 40}})
    try:
        loaded = load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(folder), length=16))
    except ConfigError as error:
        assert "times as long" in str(error)  # noqa: PT017 - transformers may put its own normalizer in its place
    else:
        assert loaded.length == 16


def test_rules_of_published_vocabularies_are_not_refused() -> None:
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    word = {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "}
    check_growth(json.dumps({"normalizer": {"normalizers": [spaces] * 3}, "decoder": word}), 512)
