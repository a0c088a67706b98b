"""Tokenizer files with parts that no published text model has, or with damaged tables: one line."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from parti.text import PretrainedTokenizerConfig
from parti.text.components import check_components
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from parti.text.tokenizer import TEXT_TOKENIZER_FILE, TextTokenizer
from tests.tiny import tiny_text_tokenizer
from tests.tiny_text_models import WRITERS, write_gpt2_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError
from vqgan.system.checksums import add_checksums

# A header of 16 bytes of trie, all of whose units lead far outside of it.
TABLE = base64.b64encode(b"\x10\0\0\0" + b"\xff" * 16 + b"abc").decode()
CASES: list[tuple[dict[str, Any], str]] = [
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "its pre_tokenizer is of type 'FixedLength', known are"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Python"}]}}, "is of type 'Python', known are"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Evil"}]}}, "normalizer is of type 'Evil', known"),
    ({"normalizer": {"Strip": {}}}, "its normalizer is of type 'None', known are"),
    ({"normalizer": ["Lowercase"]}, "its normalizer is of type "),
    ({"decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}}, "is of type 'CTC'"),
    ({"post_processor": {"type": "Sequence", "processors": [{"type": ["x"]}]}}, "its post_processor is of type "),
    ({"model": {"type": "Pickle", "vocab": {}}}, "its model is of type 'Pickle', known are BPE, Unigram, WordLevel"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": TABLE}}, "it fails at a text: index out of bounds"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "Cannot parse precompiled_charsmap"),
]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_a_saved_tokenizer_of_unknown_parts_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_text_tokenizer().save_pretrained(tmp_path)
    rewrite(tmp_path / TEXT_TOKENIZER_FILE, change)
    add_checksums(tmp_path, [TEXT_TOKENIZER_FILE])
    with pytest.raises(ModelFolderError) as caught:
        TextTokenizer.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# transformers sets the normalizer of a BERT anew, so that a table of another is not used.
@pytest.mark.parametrize(("change", "message"), [case for case in CASES if TABLE not in str(case)])
def test_a_pretrained_tokenizer_of_unknown_parts_is_one_line(
    change: dict[str, Any], message: str, bert: Path, tmp_path: Path
) -> None:
    for path in bert.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    rewrite(tmp_path / "tokenizer.json", change)
    with pytest.raises(ConfigError) as caught:
        load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(tmp_path), length=16))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "3", "[" * 100_000, '{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / TEXT_TOKENIZER_FILE).write_text(content)
    with pytest.raises(ModelFolderError, match="is damaged: ") as caught:
        TextTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_parts_of_published_kinds_pass(bert: Path, tmp_path: Path) -> None:
    for folder in (bert, write_gpt2_tokenizer(tmp_path)):
        check_components(json.loads((folder / "tokenizer.json").read_text()))
        assert Tokenizer.from_file(str(folder / "tokenizer.json"))
    check_components({"model": {"vocab": {}, "merges": []}, "normalizer": None})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS["bert"](tmp_path_factory.mktemp("bert"))


def rewrite(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
