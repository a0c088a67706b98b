"""tools/evaluate.py generator: defaults of run and model, metrics.json, what is missing, mistakes."""

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from parti.models import GENERATORS
from parti.pairs import token_space
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.tiny_runs import stage_2, untrained_tokenizer
from tests.tools.test_evaluate import error_of, main
from vqgan.config.schema import dump_config
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.system.checksums import file_sha256

PROMPTS = """\
Prompt\tCategory\tChallenge\tNote
a cat\tAnimals\tBasic\t
a dog\tAnimals\tSimple Detail\t
a jug\tArts\tBasic\t
"""
RECOMMENDED = SamplingConfig(guidance_scale=2.0, top_p=0.9)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-2 run folder with an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    image = ImageTokenizer.from_pretrained(untrained_tokenizer(folder / "tokenizer"))
    config = stage_2(folder, folder / "tokenizer")
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    text = TextTokenizer.train(["a small red circle above a large blue square"], TextTokenizerConfig(vocab_size=280))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        generator = GENERATORS[config.model.kind](config.model, token_space(text, image))
    TextToImage(generator.eval(), text, image, RECOMMENDED).save_pretrained(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty cache folder and a network that answers nothing."""

    def fail(*words: object, **__: object) -> None:
        raise urllib.error.URLError(f"no network for {words[-1]}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)


def printed_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["generator", *words, "--out", "m.json", "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_without_any_weights_the_rest_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prompts = tmp_path / "new" / "metrics.json", tmp_path / "prompts.tsv"
    prompts.write_text(PROMPTS, encoding="utf-8")
    words = [
        "--model",
        str(run),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--samples",
        "5",
        "--partiprompts",
        str(prompts),
    ]
    assert main(["generator", *words]) == 0
    captured = capsys.readouterr()
    for bar in ("pairs: 100%", "drawing: 100%", "image/s"):
        assert bar in captured.err
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["model"]["weights_sha256"] == file_sha256(run / "model" / "model.safetensors")
    metrics = report["metrics"]
    clip = "clip_score(openai/clip-vit-large-patch14)"
    measured, missing = (
        ["nats_per_code", "prompt_accuracy", "random_pairing_accuracy"],
        [clip, "fid", "inception_score", "inception_score_std", f"partiprompts_{clip}"],
    )
    assert metrics.pop("partiprompts_images")["value"] == 3
    assert list(metrics) == measured + missing
    for name in measured:
        assert metrics[name]["value"] is not None
        assert metrics[name]["protocol"]["reference"]["images"] == 8
        assert f"{name} " in captured.out
    for name in missing:
        assert metrics[name]["value"] is None
        assert "fetch" in metrics[name]["missing"]
    assert metrics["prompt_accuracy"]["protocol"]["generated"]["sampling"] == RECOMMENDED.model_dump()
    assert (out.parent / "partiprompts" / "sheet-animals.png").is_file()
    assert len(json.loads((out.parent / "partiprompts" / "samples.json").read_text(encoding="utf-8"))) == 3


def test_run_and_model_say_what_is_not_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run = stage_2(run, run / "tokenizer").data
    config = printed_config(["--model", str(run)], capsys)
    assert config["data"]["source"] == of_run.source.model_dump(mode="json")
    assert config["data"]["transform"] == of_run.transform.model_dump(mode="json")
    assert config["sampling"] == RECOMMENDED.model_dump()
    words = ["--data.source.val_size", "5", "--sampling.top_k", "7", "--clip", "somewhere"]
    config = printed_config(["--model", str(run / "model"), *words], capsys)
    assert (config["data"]["source"]["val_size"], config["data"]["source"]["train_size"]) == (5, 40)
    assert config["sampling"] == RECOMMENDED.model_dump() | {"top_k": 7}
    assert config["clip"] == ["somewhere"]
    words = ["--data", "null", "--partiprompts", "p.tsv"]
    assert printed_config(["--model", str(run), *words], capsys)["data"] is None


def test_each_mistake_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model is required" in error_of(["generator", "--out", "m.json"], capsys)
    assert "config.json is missing" in error_of(["generator", "--model", str(tmp_path)], capsys)
    assert "no text-to-image model" in error_of(["generator", "--model", str(run / "tokenizer")], capsys)
    words = ["generator", "--model", str(run)]
    assert "out is required" in error_of(words, capsys)
    words += ["--out", str(tmp_path / "metrics.json")]
    assert "did you mean samples?" in error_of([*words, "--sample", "3"], capsys)
    assert "did you mean partiprompts_limit?" in error_of([*words, "--partiprompt_limit", "3"], capsys)
    assert "there is nothing to measure on" in error_of([*words, "--data", "null"], capsys)
    assert "sampling.top_p" in error_of([*words, "--sampling.top_p", "2"], capsys)
    # Known before anything is drawn: no bar is on standard error.
    assert "partiprompts: " in error_of([*words, "--clip", "[]", "--partiprompts", str(tmp_path / "no.tsv")], capsys)


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["generator", "--help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        for word in ("--samples", "--clip", "--partiprompts", "--partiprompts_limit", "--sampling.top_p"):
            assert f"{word}  " in text
    assert "--lpips  " not in text, "the tokenizer's own"
