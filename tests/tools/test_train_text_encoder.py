"""tools/train_text_encoder.py from the command line, and tools/train_parti.py that starts from what it ships."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parti.pipeline import TextToImage
from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig
from tests.tiny import tiny_image_tokenizer
from vqgan.config.schema import describe_fields, load_config

ROOT = Path(__file__).parents[2]
_DATA = """
data:
  source: {kind: shapes, train_size: 8, val_size: 4}
  transform: {image_size: 16}
  batch_size: 4
loop: {steps: 3, log_every: 2}
"""
WARM_UP = f"""{_DATA}
objective: text_encoder
text: {{vocab_size: 280, length: 64, training_captions: 8}}
model:
  encoder_depth: 1
  width: 16
  heads: 2
  mlp_width: 32
  image_encoder: {{depth: 1, width: 16, heads: 2, mlp_width: 32}}
  patch_size: 4
  embedding_width: 8
preview_images: 2
"""
STAGE_2 = f"""{_DATA}
objective: next_token
model: {{encoder_depth: 1, decoder_depth: 1, width: 16, heads: 2, mlp_width: 32}}
task: {{sampled_prompts: 2}}
"""


def load_main(name: str) -> Callable[[list[str]], int]:
    """`main` of a tool, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


train_text_encoder, train_parti = load_main("train_text_encoder"), load_main("train_parti")


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_text_encoder(["--help"]) == 0
    text = capsys.readouterr().out
    letters = "".join(text.split())  # help is wrapped, after hyphens too
    for field in describe_fields(TrainTextEncoderConfig):
        assert f"--{field.name}  {field.type}  [{field.default}]" in text
        assert "".join(field.help.split()) in letters
    assert "accelerate launch tools/train_text_encoder.py --config configs/text_encoder/shapes.yaml" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.encoder_dept", "3"], "did you mean model.encoder_depth?"),
        (["--model.patch_size", "7"], "does not divide into patches of 7"),
        (["--corpus", "nowhere.txt"], "no text in 'nowhere.txt'; give a text file with one passage a line"),
        (["--text", "{kind: saved, folder: nowhere}"], "no text tokenizer in nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(WARM_UP)
    assert train_text_encoder(["--config", str(tmp_path / "config.yaml"), "--run_dir", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_warm_up_and_stage_2_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1.yaml").write_text(WARM_UP)
    (tmp_path / "2.yaml").write_text(STAGE_2)
    tiny_image_tokenizer().save_pretrained(tmp_path / "tokenizer")
    first, second = tmp_path / "text-encoder", tmp_path / "parti"
    assert train_text_encoder(["--config", str(tmp_path / "1.yaml"), "--run_dir", str(first)]) == 0
    assert load_config(TrainTextEncoderConfig, first / "config.yaml").run_dir == str(first)
    records = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    told = [(record["step"], record["split"]) for record in records if record["split"] != "event"]
    assert told == [(2, "train"), (3, "train"), (3, "val")]
    assert {"masked_nats", "masked_accuracy", "image_to_text_accuracy", "text_to_image_accuracy"} <= records[-1].keys()
    with Image.open(first / "samples" / "step-0000003.png") as image:
        assert image.size[0] > 16

    words = ["--config", str(tmp_path / "2.yaml"), "--run_dir", str(second)]
    words += ["--image_tokenizer", str(tmp_path / "tokenizer"), "--model.text_encoder.start", str(first)]
    capsys.readouterr()
    assert train_parti(words) == 2
    assert f"set text.kind to saved and text.folder to '{first}'" in capsys.readouterr().err
    words += ["--text.kind", "saved", "--text.folder", str(first)]
    assert train_parti([*words, "--model.width", "8"]) == 2
    assert "has width 16, not 8 (model.width); set this run to its sizes" in capsys.readouterr().err
    assert train_parti(words) == 0
    assert TextToImage.from_pretrained(second / "model").text_tokenizer.length == 64
