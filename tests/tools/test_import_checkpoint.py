"""tools/import_checkpoint.py and tools/export_checkpoint.py from the command line."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vqgan import load_tokenizer
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import build_autoencoder
from vqgan.models.cnn_vqgan import CNNVQGANConfig
from vqgan.quantizers import NearestConfig

CONFIG = CNNVQGANConfig(
    image_size=16,
    base_channels=32,
    channel_multipliers=(1, 1),
    residual_blocks=1,
    attention_resolutions=(),
    latent_channels=8,
    quantizer=NearestConfig(codebook_size=20, code_dim=6, l2_normalize=False),
)


def load_main(name: str) -> Callable[[list[str]], int]:
    """`main` of a tool, which is a script and in no package."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


import_main, export_main = load_main("import_checkpoint"), load_main("export_checkpoint")


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(build_autoencoder(CONFIG))


def test_out_and_in_again(tokenizer: ImageTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    checkpoint, config, out = (str(tmp_path / name) for name in ("taming.ckpt", "taming.yaml", "out"))
    assert export_main(["--model", str(tmp_path / "run"), "--format", "taming", "--out", checkpoint]) == 0
    assert capsys.readouterr().out == f"weights in {checkpoint}, config in {config}\n"

    words = ["--format", "taming", "--checkpoint", checkpoint]
    assert import_main([*words, "--config", config, "--out", out]) == 0
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    assert capsys.readouterr().out == (
        f"taming: {parameters:,} parameters, 20 codes, a grid of 8x8 for 16x16 pixels\n"
        f"written to {out}; read back, it gives the same codes and the same image\n"
    )
    loaded = load_tokenizer(out).state_dict()
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded[name], tensor), name

    assert import_main([*words, "--image-size", "32", "--out", f"{out}-32"]) == 0
    assert "a grid of 16x16 for 32x32 pixels" in capsys.readouterr().out


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def error_of(main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


def test_a_hostile_file_is_one_line_and_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": Hostile(tmp_path / "trace")}, tmp_path / "last.ckpt")
    words = ["--format", "taming", "--checkpoint", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "out")]
    assert "is refused: it asks for posix.system, which weights do not need" in error_of(import_main, words, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    checkpoint = ["--checkpoint", str(tmp_path / "nowhere.ckpt")]
    message = error_of(import_main, ["--format", "tamming", *checkpoint, *out], capsys)
    assert "format: 'tamming' is not a choice; did you mean taming?" in message
    assert "mindalle" in message
    assert "checkpoint is required" in error_of(import_main, ["--format", "taming", *out], capsys)
    message = error_of(import_main, ["--format", "taming", *checkpoint, *out], capsys)
    assert message.endswith("nowhere.ckpt cannot be read: No such file or directory; give a weight file")
    message = error_of(import_main, ["--format", "taming", *checkpoint, *out, "--config", "nowhere.yaml"], capsys)
    assert message.startswith("config file 'nowhere.yaml' cannot be read")
    message = error_of(export_main, ["--model", str(tmp_path), "--format", "taming", *out], capsys)
    assert "config.json is missing" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("main", [import_main, export_main])
def test_help(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--format  taming" in capsys.readouterr().out
