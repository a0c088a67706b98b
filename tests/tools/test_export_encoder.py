"""`parti export-checkpoint` of a network of masked image modeling: folders that timm and transformers open."""

from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoModel

from parti.cli.export_checkpoint import main
from parti.mim.targets import to_imagenet
from tests.parti.mim.tiny_mim import pixels, tiny_network
from tests.tiny import tiny_image_tokenizer


def test_folders_are_opened_by_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = tiny_network("mpp")
    network.save_pretrained(tmp_path / "model")
    for name in ("timm", "transformers"):
        words = ["--model", str(tmp_path), "--format", name, "--out", str(tmp_path / name)]
        assert main(words) == 0
        assert f"for {name} in" in capsys.readouterr().out
    images = to_imagenet(pixels())
    expected = network.layer_states(pixels())[-1]
    ours = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    theirs = AutoModel.from_pretrained(tmp_path / "transformers", add_pooling_layer=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(images)[:, 1:], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(images).last_hidden_state[:, 1:], expected, rtol=1e-5, atol=1e-5)


def test_another_model_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path)
    words = ["--model", str(tmp_path), "--format", "timm", "--out", str(tmp_path / "out")]
    assert main(words) != 0
    assert "holds no network of masked image modeling" in capsys.readouterr().err
