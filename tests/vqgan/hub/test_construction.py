"""Sizes that somebody else wrote: networks end at their bound, before they take the machine's memory or time."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from parti.pipeline import TextToImage
from tests.tiny import AUTOENCODER, tiny_image_tokenizer, tiny_text_to_image
from vqgan.config.schema import ConfigError
from vqgan.hub.construction import TooLargeError, bounded, within_file, within_memory
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError
from vqgan.hub.weights_header import WeightsHeaderError, stored_shapes
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import build_autoencoder

HUGE = 2147483648
Values = dict[str, Any]


def deep() -> nn.Module:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(HUGE)))


def activations() -> nn.Module:
    """No tensor in it."""
    return nn.ModuleList(nn.ReLU() for _ in range(HUGE))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "build",
    [
        deep,
        pytest.param(activations, marks=pytest.mark.slow),
        lambda: nn.Linear(HUGE, HUGE),
        lambda: nn.Embedding(10**9, 100),
    ],
)
def test_building_ends_at_the_bound(build: Callable[[], nn.Module]) -> None:
    start = time.process_time()
    with pytest.raises(TooLargeError, match="the sizes in the config are those of a "):
        within_file(build, 10, 1000)
    with pytest.raises(ConfigError, match="make it smaller"):
        within_memory(build)
    assert time.process_time() - start < 30
    nn.Linear(10_000, 1000)  # nothing of the bound is left


def test_a_network_of_its_file_is_built_as_without_a_bound() -> None:
    torch.manual_seed(3)
    expected = build_autoencoder(AUTOENCODER).state_dict()
    after = torch.rand(1)
    torch.manual_seed(3)
    found = within_file(lambda: build_autoencoder(AUTOENCODER), 40, 40_000).state_dict()
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(RuntimeError, match="mat1"), bounded(10, 10, ""):  # an error of another kind stays what it is
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model["encoder"].update(depth=HUGE),
        lambda model: model["decoder"].update(width=1 << 30, mlp_width=1 << 31),
        lambda model: model["quantizer"].update(codebook_size=1 << 40),
        lambda model: model.update(image_size=1 << 30),
        lambda model: model.update(image_size=1 << 16),
    ],
)
def test_a_tokenizers_config_asks_for_no_more_than_its_weights(
    change: Callable[[Values], object], tmp_path: Path
) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    change(values)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises((ModelFolderError, ConfigError)) as caught:
        ImageTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["encoder_depth", pytest.param("decoder_depth", marks=pytest.mark.slow), "width", "mlp_width", "heads"]
)
def test_a_generators_config_asks_for_no_more_than_its_weights(key: str, tmp_path: Path) -> None:
    tiny_text_to_image().save_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values["model"][key] = HUGE
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises((ModelFolderError, ConfigError)) as caught:
        TextToImage.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[" * 10**6, "9" * 5000, '{"kind": ' * 10**5, "[1]", "\x00", "NaN"])
def test_a_config_that_is_no_config(content: str, tmp_path: Path) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(ModelFolderError, match=r"is not valid JSON|not a mapping|not a regular file") as caught:
        ImageTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def written(header: bytes, path: Path, body: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


def test_headers_that_lie(tmp_path: Path) -> None:
    entry = '{"dtype": "F32", "shape": SHAPE, "data_offsets": [0, 0]}'
    many = "{" + ", ".join(f'"t{number}": {entry.replace("SHAPE", "[0]")}' for number in range(110_000)) + "}"
    cases = {
        "holds 110000 tensors": many,
        "no possible shape": '{"a": ' + entry.replace("SHAPE", f"[{1 << 60}]") + "}",
        "has 20 axes": '{"a": ' + entry.replace("SHAPE", str([1] * 20)) + "}",
        "is no JSON": "[" * 100_000,
        "is no mapping": "[1]",
        "at most 16777216 are read": " " * (17 << 20),
    }
    for message, header in cases.items():
        with pytest.raises(WeightsHeaderError, match=message):
            stored_shapes(written(header.encode(), tmp_path / "x.safetensors"))
    (tmp_path / "short").write_bytes(b"\xff" * 8)
    with pytest.raises(WeightsHeaderError, match="its header has no length"):
        stored_shapes(tmp_path / "short")


def test_tensors_that_overlap_or_are_missing_are_refused(tmp_path: Path) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path / "good")
    for name, header in {
        "overlap": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        "false": '{"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 4]}}',
    }.items():
        folder = shutil.copytree(tmp_path / "good", tmp_path / name)
        (folder / "SHA256SUMS").unlink(missing_ok=True)
        written(header.encode(), folder / WEIGHTS_FILE, b"\0" * 4)
        with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
            ImageTokenizer.from_pretrained(folder)
    weights = load_file(tmp_path / "good" / WEIGHTS_FILE)
    weights.popitem()
    (tmp_path / "good" / "SHA256SUMS").unlink(missing_ok=True)
    save_file(weights, tmp_path / "good" / WEIGHTS_FILE)
    with pytest.raises(ModelFolderError, match="does not fit"):
        ImageTokenizer.from_pretrained(tmp_path / "good")
