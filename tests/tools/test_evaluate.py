"""tools/evaluate.py from the command line: defaults of the run, what metrics.json holds, what is missing, mistakes."""

import importlib.util
import json
import math
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.tiny_runs import stage_1, untrained_tokenizer
from vqgan.config.schema import dump_config
from vqgan.system.checksums import file_sha256


def load_main() -> Callable[[list[str]], int]:
    """`main` of tools/evaluate.py, which is a script and in no package."""
    path = Path(__file__).parents[2] / "tools" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("tools_evaluate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load_main()
NAMES = [
    *("psnr", "ssim", "lpips_alex", "lpips_vgg", "rfid", "inception_score", "inception_score_std"),
    *("codebook_usage_256", "codebook_usage", "codebook_perplexity", "codebook_entropy", "dead_codes"),
    "images_per_second",
]
NEED_WEIGHTS = ["lpips_alex", "lpips_vgg", "rfid", "inception_score", "inception_score_std"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("run")
    untrained_tokenizer(folder / "model")
    (folder / "config.yaml").write_text(dump_config(stage_1(folder)), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty cache folder and a network that answers nothing."""

    def fail(url: str, *_: object, **__: object) -> None:
        raise urllib.error.URLError(f"no network for {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)


def printed_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["tokenizer", *words, "--out", "m.json", "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a call that fails."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


def test_without_any_weights_the_rest_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "metrics.json"
    assert main(["tokenizer", "--model", str(run), "--out", str(out), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "evaluating: 100%" in captured.err
    assert "image/s" in captured.err
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["model"]["weights_sha256"] == file_sha256(run / "model" / "model.safetensors")
    metrics = report["metrics"]
    assert list(metrics) == NAMES
    for name, metric in metrics.items():
        assert {"value", "unit", "protocol"} <= metric.keys() <= {"value", "unit", "protocol", "warning", "missing"}
        protocol = metric["protocol"]
        assert {"method", "reference", "crop", "resize", "rounding", "dtype", "device", "model"} <= protocol.keys()
        assert protocol["reference"]["images"] == 8
        assert protocol["reference"]["split"] == "val"
        assert len(protocol["reference"]["pixels_sha256"]) == 64
        assert f"  {name} " in captured.out
        if metric["value"] is None:
            assert name in [*NEED_WEIGHTS, "codebook_usage_256"]
            assert metric["missing"] in captured.out
        else:
            assert math.isfinite(metric["value"])
            assert "evaluator" in protocol
    for name in NEED_WEIGHTS:
        assert "fetch https://" in metrics[name]["missing"]
        assert "put it there" in metrics[name]["missing"]
    assert "lpips.weights" in metrics["lpips_alex"]["missing"]
    assert metrics["images_per_second"]["protocol"]["batch_size"] == 8


def test_the_run_says_on_which_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run = stage_1(run).data
    for model in (run, run / "model"):
        data = printed_config(["--model", str(model)], capsys)["data"]
        assert data["source"] == of_run.source.model_dump(mode="json")
        assert data["transform"] == of_run.transform.model_dump(mode="json")
        assert data["batch_size"] == of_run.batch_size
    words = ["--data.source.val_size", "5", "--data.transform.crop", "pad", "--data.batch_size", "3"]
    data = printed_config(["--model", str(run), *words], capsys)["data"]
    assert data["source"]["val_size"] == 5
    assert data["source"]["train_size"] == 40
    assert (data["transform"]["crop"], data["transform"]["image_size"], data["batch_size"]) == ("pad", 32, 3)


def test_a_model_folder_alone_takes_images_from_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = untrained_tokenizer(tmp_path / "tokenizer")
    assert "data.source is required" in error_of(["tokenizer", "--model", str(model), "--out", "m.json"], capsys)

    images, out = tmp_path / "images", tmp_path / "metrics.json"
    images.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    words = ["--model", str(model), "--out", str(out), "--data.source", f"{{kind: folder, path: {images}}}"]
    assert main(["tokenizer", *words, "--split", "all", "--limit", "5", "--lpips", "[]"]) == 0
    metrics = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    assert list(metrics) == [name for name in NAMES if not name.startswith("lpips")]
    reference = metrics["psnr"]["protocol"]["reference"]
    assert (reference["images"], reference["limit"], reference["split"]) == (5, 5, "all")
    assert "resize" in metrics["psnr"]["protocol"]
    assert "Lanczos to 32, antialiased" in metrics["psnr"]["protocol"]["resize"]


def test_each_mistake_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "the first word says what to evaluate: tokenizer, generator, captioner, inpainter, encoder; "
    assert error_of([], capsys).startswith("--model is missing")
    assert "say in the first word what to evaluate" in error_of(["--model", str(tmp_path)], capsys)
    assert error_of(["tokeniser"], capsys) == f"{first}received 'tokeniser'; did you mean tokenizer?"
    assert "model is required" in error_of(["tokenizer", "--out", "m.json"], capsys)
    assert "config.json is missing" in error_of(["tokenizer", "--model", str(tmp_path)], capsys)
    assert "out is required" in error_of(["tokenizer", "--model", str(run)], capsys)
    words = ["tokenizer", "--model", str(run), "--out", str(tmp_path / "metrics.json")]
    assert "did you mean split?" in error_of([*words, "--splitt", "train"], capsys)
    assert "it reads 32" not in error_of([*words, "--data.source", "{kind: folder, path: nowhere}"], capsys)
    assert "image_size is 64, the tokenizer" in error_of([*words, "--data.transform.image_size", "64"], capsys)


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--model", "--out", "--split", "--limit", "--lpips", "--inception_weights", "--data.batch_size"):
        assert f"{word}  " in text
    assert "--data.source" in text
    assert main(["tokenizer", "--help"]) == 0
    assert "--partiprompts" in text
    assert "--partiprompts  " not in capsys.readouterr().out


@pytest.mark.slow
def test_with_untrained_networks_every_metric_has_a_value(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    networks = "[{backbone: alex, weights: random}, {backbone: squeeze, weights: random}]"
    words = ["--model", str(run), "--out", str(out), "--lpips", networks, "--inception_weights", "random"]
    assert main(["tokenizer", *words, "--data.source.val_size", "10"]) == 0
    metrics = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    assert [name for name, metric in metrics.items() if metric["value"] is None] == ["codebook_usage_256"]
    for name in ("lpips_alex", "lpips_squeeze", "rfid", "inception_score"):
        assert "untrained network: compares with nothing" in metrics[name]["warning"]
    assert "singular covariance: 10 images for 2048 features" in metrics["rfid"]["warning"]
    assert metrics["rfid"]["value"] > 0
