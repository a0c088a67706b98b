"""tools/evaluate.py on the fused models: the metrics of the run's own last evaluation, each with its protocol."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parti.fused.captioning.metrics import can_compare_texts
from vqgan.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SHARED = """
data:
  source: {{kind: shapes, train_size: 8, val_size: 6}}
  transform: {{image_size: {size}}}
  batch_size: 4
text: {{vocab_size: 400, length: 16, training_captions: 8}}
loop: {{steps: 2, log_every: 1}}
preview_images: 2
seed: 3
"""
RUNS = {
    "inpainter": """
objective: fused_inpainting
model: {image_size: 16, deepest_row: 3, channels: [8, 8, 8], text: {width: 16, heads: 2, mlp_width: 16}}
task: {perceptual: {weight: 0}, precision: fp32, corruption: {mostly_image: 0.2}}
""",
    "captioner": """
objective: fused_captioning
model:
  image_size: 32
  deepest_row: 4
  channels: [8, 8, 8, 8]
  text: {width: 16, heads: 2, mlp_width: 16}
task: {precision: fp32, rounds: 1}
""",
    "generator": """
objective: fused_synthesis
model:
  trunk: {image_size: 32, deepest_row: 4, channels: [8, 8, 8, 8], text: {width: 8, heads: 2, mlp_width: 16}}
  finest_channels: 8
  noise: {channels: 4, hidden_channels: 8}
discriminators: {scale: {base_channels: 4, sentence_width: 8}}
task: {sampled_prompts: 6}
""",
}
SIZES = {"inpainter": 16, "captioner": 32, "generator": 32}


def load_main(name: str) -> Callable[[list[str]], int]:
    """`main` of a tool, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


train_parti, main = load_main("train_parti"), load_main("evaluate")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for word, text in RUNS.items():
        (folder / f"{word}.yaml").write_text(text + SHARED.format(size=SIZES[word]))
        assert train_parti(["--config", str(folder / f"{word}.yaml"), "--run_dir", str(folder / word)]) == 0
    return {word: folder / word for word in RUNS}


def measured(words: list[str], out: Path) -> dict[str, Any]:
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    return json.loads(out.read_text(encoding="utf-8"))["metrics"]


def last_evaluation(run: Path) -> dict[str, Any]:
    last = [record for record in RunFolder(run).read_metrics() if record["split"] == "val"][-1]
    return {name: value for name, value in last.items() if name not in ("step", "split")}


@pytest.mark.parametrize("word", ["inpainter", "captioner"])
def test_the_metrics_are_those_of_the_run(word: str, runs: dict[str, Path], tmp_path: Path) -> None:
    metrics = measured([word, "--model", str(runs[word])], tmp_path / "metrics.json")
    expected = last_evaluation(runs[word])
    values = {name: metric["value"] for name, metric in metrics.items() if metric["value"] is not None}
    assert values == pytest.approx(expected, rel=1e-6)
    assert len(values) == (6 if word == "inpainter" else 9 + 4 * can_compare_texts())
    for metric in metrics.values():
        protocol = metric["protocol"]
        assert protocol["reference"]["images"] == 6
        assert len(protocol["model"]["weights_sha256"]) == 64
        assert protocol["method"]
        if metric["value"] is not None:
            assert protocol["seed"] == 3


def test_a_model_that_draws_in_one_pass_is_measured_like_any_generator(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generator", "--model", str(runs["generator"]), "--inception_weights", "random", "--clip", "[]"]
    metrics = measured(words, tmp_path / "metrics.json")
    assert list(metrics) == [
        *("prompt_accuracy", "random_pairing_accuracy", "fid", "inception_score", "inception_score_std")
    ]
    assert metrics["prompt_accuracy"]["value"] == last_evaluation(runs["generator"])["prompt_accuracy"]
    assert metrics["fid"]["protocol"]["generated"]["sampling"] == {}
    assert "images of 32x32 in one pass" in capsys.readouterr().out

    prompts = tmp_path / "prompts.tsv"
    prompts.write_text("Prompt\tCategory\tChallenge\tNote\na red cat\tAnimals\tBasic\t\n", encoding="utf-8")
    words = [*words, "--data", "null", "--partiprompts", str(prompts)]
    assert measured(words, tmp_path / "more" / "metrics.json")["partiprompts_images"]["value"] == 1
    image = tmp_path / "more" / "partiprompts" / "0000-00.png"
    generated = image.stat().st_mtime_ns
    measured(words, tmp_path / "more" / "metrics.json")
    assert image.stat().st_mtime_ns == generated, "not drawn again"


def test_each_mistake_is_one_line(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "metrics.json")]
    wrong = {
        "generates whole images in one pass, without codes and without settings for sampling them; leave it out": [
            *("generator", "--model", str(runs["generator"]), "--sampling.top_k", "3")
        ],
        "holds no captioner": ["captioner", "--model", str(runs["inpainter"])],
        "image_size is 64, the model in .* reads 16": [
            *("inpainter", "--model", str(runs["inpainter"]), "--data.transform.image_size", "64")
        ],
        "did you mean captioner": ["captionr"],
    }
    for message, words in wrong.items():
        assert main([*words, *out]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: "), said
        assert said.count("\n") == 1
        assert re.search(message, said), said
