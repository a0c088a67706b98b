"""Sizes in a transformers folder that are not those of its weights: one line, before anything is built of them."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from parti.reranker.scorer import Scorer
from parti.text.encoders import PretrainedTextEncoder, PretrainedTextEncoderConfig
from parti.text.transformers_folder import UnsafeFolderError, check_weights
from tests.parti.reranker.test_scorer import save_clip
from tests.tiny_text_models import WRITERS
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError

HUGE = 2147483648
SIZES = [
    *(("bert", "num_hidden_layers"), ("bert", "hidden_size"), ("bert", "vocab_size"), ("bert", "intermediate_size")),
    *(("t5", "num_layers"), ("t5", "d_ff"), ("t5", "vocab_size"), ("t5", "relative_attention_num_buckets")),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}
    found["scorer"] = tmp_path_factory.mktemp("scorer")
    save_clip(found["scorer"])
    return found


def load_encoder(folder: Path) -> object:
    return PretrainedTextEncoder(PretrainedTextEncoderConfig(name=str(folder)), 10, 16, 32)


def with_size(folder: Path, path: tuple[str, ...], value: int) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    section: dict[str, Any] = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (folder / CONFIG_FILE).write_text(json.dumps(values))


@pytest.mark.parametrize(("name", "key"), SIZES)
def test_a_huge_size_of_a_text_encoder_is_one_line(
    name: str, key: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[name], tmp_path / "folder")
    with_size(tmp_path / "folder", (key,), HUGE)
    assert_one_line(lambda: load_encoder(tmp_path / "folder"))


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("key", ["num_hidden_layers", "intermediate_size", "hidden_size"])
def test_a_huge_size_of_a_scorer_is_one_line(part: str, key: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["scorer"], tmp_path / "folder")
    with_size(tmp_path / "folder", (part, key), HUGE)
    assert_one_line(lambda: Scorer.from_pretrained(tmp_path / "folder"))


def assert_one_line(load: Callable[[], object]) -> None:
    start = time.process_time()
    with pytest.raises((ConfigError, ModelFolderError)) as caught:
        load()
    assert time.process_time() - start < 20, "0.1 to 2 s"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{" * 1000, "its header is no JSON"),
        (b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "has no possible shape"),
        (json.dumps({"w": {"shape": [1] * 17}}).encode(), "has 17 axes"),
        (b"[" + b"0," * 100 + b"0]", "its header is no mapping"),
        (json.dumps({str(number): {"shape": []} for number in range(100_001)}).encode(), "holds 100001 tensors"),
        (b" " * (17 << 20), "has a header of 17825792 bytes"),
    ],
)
def test_a_hostile_header_of_weights_is_one_line(header: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UnsafeFolderError, match=message) as caught:
        check_weights(tmp_path, lambda: pytest.fail("nothing is built of it"))
    assert "\n" not in str(caught.value)


def test_weights_of_several_files_count_together(tmp_path: Path) -> None:
    """More than one file's numbers allow and less than both do: a linear layer of 64M numbers."""
    for name in ("model-1.safetensors", "model-2.safetensors"):
        header = json.dumps({"w": {"dtype": "F32", "shape": [8 << 20], "data_offsets": [0, 4]}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header)
    check_weights(tmp_path, lambda: nn.Linear(1 << 13, 1 << 13))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UnsafeFolderError, match="more numbers than its 1 stored tensors and 8,388,608 numbers allow"):
        check_weights(tmp_path, lambda: nn.Linear(1 << 13, 1 << 13))


def test_intact_folders_pass(folders: dict[str, Path]) -> None:
    assert load_encoder(folders["bert"])
    assert load_encoder(folders["t5"])
    assert Scorer.from_pretrained(folders["scorer"])
