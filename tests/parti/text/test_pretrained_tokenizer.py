"""Vocabularies of pretrained text models: transformers' own ids, padding and the null caption, one file for all."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from parti.text import PretrainedTokenizerConfig, TextTokenizer
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from tests.tiny import CAPTIONS
from tests.tiny_text_models import WRITERS, write_gpt2_tokenizer
from vqgan.config.schema import ConfigError

ALL = WRITERS | {"gpt2": write_gpt2_tokenizer}
TEXTS = [*CAPTIONS, "A Red CAT, twice", "Zürich 🦊", "cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in ALL.items()}


def load(folder: Path, length: int = 24) -> TextTokenizer:
    return load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(folder), length=length))


@pytest.mark.parametrize("name", ALL)
def test_the_ids_are_those_of_transformers(name: str, folders: dict[str, Path]) -> None:
    theirs = AutoTokenizer.from_pretrained(folders[name])
    for length in (24, 6):
        ours = load(folders[name], length)
        ids, cut = ours.tokenize(TEXTS)
        assert ids.shape == (len(TEXTS), length)
        assert ids.dtype == torch.int64
        for row, text, is_cut in zip(ids, TEXTS, cut, strict=True):
            assert row[row != ours.pad_id].tolist() == theirs(text, truncation=True, max_length=length)["input_ids"]
            assert is_cut == (len(theirs(text)["input_ids"]) > length)
            visible = int((row != ours.pad_id).sum())
            assert (row[:visible] != ours.pad_id).all(), "padding comes last"


@pytest.mark.parametrize("name", ALL)
def test_text_survives(name: str, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[name])
    assert tokenizer.decode(tokenizer.encode(CAPTIONS)) == CAPTIONS


@pytest.mark.parametrize("name", ALL)
def test_padding_has_an_id_that_is_no_text(name: str, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[name])
    known = AutoTokenizer.from_pretrained(folders[name])
    assert tokenizer.pad_id == len(known) < tokenizer.vocab_size
    spelled = tokenizer.encode([f"{known.pad_token} {known.eos_token} <|caption-padding|>"])[0]
    visible = spelled[spelled != tokenizer.pad_id]
    assert (spelled[: len(visible)] != tokenizer.pad_id).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("blank", ["", "  ", "\n\t", "\u3000"])
def test_a_blank_caption_is_the_null_caption_and_leaves_something_to_attend_to(
    name: str, blank: str, folders: dict[str, Path]
) -> None:
    tokenizer = load(folders[name])
    null_ids = tokenizer.null_ids
    assert (null_ids != tokenizer.pad_id).any()
    assert null_ids.max() < tokenizer.vocab_size
    assert torch.equal(tokenizer.encode([blank])[0], null_ids)
    assert tokenizer.decode(null_ids[None]) == [""]
    assert not any(torch.equal(row, null_ids) for row in tokenizer.encode(CAPTIONS))
    null_ids[:] = 0  # a copy: what the caller does to it is not seen
    assert torch.equal(tokenizer.encode([blank])[0], tokenizer.null_ids)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_one_needs_nothing_of_the_original(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    original = shutil.copytree(folders[name], tmp_path / "original")
    tokenizer = load(original)
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.rmtree(original)
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == ["SHA256SUMS", "text_tokenizer.json"]
    again = TextTokenizer.from_pretrained(tmp_path / "saved")
    for one, other in ((again.tokenize([*TEXTS, ""]), tokenizer.tokenize([*TEXTS, ""])),):
        assert torch.equal(one.ids, other.ids)
        assert one.cut == other.cut
    assert (again.length, again.vocab_size, again.pad_id) == (24, tokenizer.vocab_size, tokenizer.pad_id)
    assert again.decode(again.encode(CAPTIONS)) == CAPTIONS
    assert torch.equal(again.null_ids, tokenizer.null_ids)


def test_too_few_positions_for_the_special_tokens(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"text\.length is 2, and 2 of these are special tokens"):
        load(folders["bert"], 2)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds none of tokenizer"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"text\.name: transformers reads no tokenizer from") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_is_looked_up_in_the_cache_and_then_on_the_hub(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool | str] = []

    def model_info(_: object, name: str, *, timeout: float) -> None:
        assert 0 < timeout <= 10
        asked.append(name)

    def snapshot_download(name: str, *, local_files_only: bool, **_: Any) -> str:
        assert name == "someone/model"
        asked.append(local_files_only)
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return str(folders["bert"])

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load(Path("someone/model")).decode(load(folders["bert"]).encode(["a red cat"])) == ["a red cat"]
    assert asked == [True, "someone/model", False]


def test_a_name_that_nobody_has_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(
        ConfigError, match=r"'someone/model' is no folder .*no route to host\): give a folder, or"
    ) as caught:
        load(Path("someone/model"))
    assert "\n" not in str(caught.value)
    assert "hf download someone/model" in str(caught.value)
