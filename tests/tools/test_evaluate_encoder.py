"""`tools/evaluate.py encoder`: metrics of an encoder beside both baselines, each with its protocol."""

import json
from pathlib import Path

import pytest

from tests.parti.mim.tiny_mim import tiny_network
from tests.tiny import tiny_image_tokenizer
from tools.evaluate import main

DATA = ["--data.source", "{kind: shapes}", "--train_images", "60", "--limit", "30"]
FEW = ["--few_labels", "25"]


def test_every_metric_has_its_baselines_and_its_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_network("mae").save_pretrained(tmp_path / "model")
    out = tmp_path / "metrics.json"
    assert main(["encoder", "--model", str(tmp_path / "model"), "--out", str(out), *DATA, *FEW]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    for name in ("probe", "knn", "probe_axis", "probe_color_a", "knn_shape_b"):
        for prefix in ("", "random_", "pixels_"):
            assert 0 <= metrics[prefix + name]["value"] <= 1
    for prefix in ("", "random_"):
        assert 0 < metrics[f"{prefix}few_labels"]["value"] < 1
        assert metrics[f"{prefix}few_labels_axis"]["protocol"]["images"] == 25
    for name in ("dense_object", "dense_shape", "dense_color"):
        assert {name, f"random_{name}", f"pixels_{name}"} <= metrics.keys()
    assert metrics["pixels_dense_color"]["value"] > 0.5
    protocol = metrics["probe_axis"]["protocol"]
    assert protocol["fitted_to"]["images"] == 60
    assert protocol["reference"]["images"] == 30
    assert protocol["interval_95"] > 0
    assert protocol["classes"] == 2
    assert metrics["pixels_probe"]["value"] > 0.3
    said = capsys.readouterr().out
    assert "the same network before training" in said
    again = tmp_path / "again.json"
    assert main(["encoder", "--model", str(tmp_path / "model"), "--out", str(again), *DATA, *FEW]) == 0
    assert json.loads(again.read_text()) == json.loads(out.read_text()), "nothing is left to chance"


def test_another_model_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path)
    assert main(["encoder", "--model", str(tmp_path), "--out", str(tmp_path / "m.json"), *DATA]) == 2
    assert "holds no network of masked image modeling (mae, simmim, beit, mpp)" in capsys.readouterr().err
