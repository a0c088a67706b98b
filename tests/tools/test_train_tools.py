"""The training tools from the command line: help, the resolved config, one line for a mistake, and a run folder."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parti.next_token.train_next_token import TrainPartiConfig
from parti.pipeline import TextToImage
from vqgan.config.schema import Config, describe_fields, load_config
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.train_tokenizer import TrainVQGANConfig

ROOT = Path(__file__).parents[2]

_STACK = "{depth: 1, width: 16, heads: 2, mlp_width: 32}"
STAGE_1 = f"""
objective: image_tokenizer
data:
  source: {{kind: shapes, train_size: 8, val_size: 4}}
  transform: {{image_size: 16}}
  batch_size: 4
model:
  image_size: 16
  patch_size: 4
  encoder: {_STACK}
  decoder: {_STACK}
  quantizer: {{codebook_size: 32, code_dim: 4}}
task:
  perceptual: {{weight: 0}}
  adversarial: {{discriminator: {{channels: [4, 4, 4]}}}}
loop: {{steps: 3, log_every: 2}}
preview_images: 2
"""
STAGE_2 = """
objective: next_token
data:
  source: {kind: shapes, train_size: 8, val_size: 4}
  transform: {image_size: 16}
  batch_size: 4
text: {vocab_size: 280, length: 64, training_captions: 8}
model: {encoder_depth: 1, decoder_depth: 1, width: 16, heads: 2, mlp_width: 32}
task: {sampled_prompts: 2}
loop: {steps: 3, log_every: 2}
preview_prompts: [a small red circle above a large blue square]
"""


def load_main(name: str) -> Callable[[list[str]], int]:
    """`main` of a tool, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


train_vqgan, train_parti = load_main("train_vqgan"), load_main("train_parti")
TOOLS = [(train_vqgan, TrainVQGANConfig), (train_parti, TrainPartiConfig)]
IDS = ["vqgan", "parti"]


@pytest.mark.parametrize(("main", "config_type"), TOOLS, ids=IDS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_every_field(
    main: Callable[[list[str]], int], config_type: type[Config], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 0
    text = capsys.readouterr().out
    letters = "".join(text.split())  # help is wrapped, after hyphens too
    fields = list(describe_fields(config_type))
    assert len(fields) > 40
    for field in fields:
        assert f"--{field.name}  {field.type}  [{field.default}]" in text
        assert "".join(field.help.split()) in letters
    for option in ("--config", "--print-config", "--help"):
        assert option in text
    assert "accelerate launch tools/train_" in text


@pytest.mark.parametrize(("main", "config_type"), TOOLS, ids=IDS)
def test_print_config_prints_what_loads_again(
    main: Callable[[list[str]], int], config_type: type[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "configs" / ("vqgan" if config_type is TrainVQGANConfig else "parti") / "shapes.yaml"
    overrides = ["--loop.steps", "7", "--task.optimizer.learning_rate=3e-4"]
    assert main(["--config", str(file), *overrides, "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(config_type, tmp_path / "printed.yaml")
    assert config == load_config(config_type, file, overrides)
    assert isinstance(config, TrainVQGANConfig | TrainPartiConfig)
    assert (config.loop.steps, config.task.optimizer.learning_rate) == (7, 3e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loop.step", "3"], "loop.step"),
        (["--loop.steps", "many"], "loop.steps"),
        (["loop.steps=3"], "expected an option like --section.field"),
        (["--config"], "--config needs a file"),
        (["--config", "nowhere.yaml"], "'nowhere.yaml' cannot be read"),
        (["--data.source.kind", "shape"], "did you mean shapes?"),
    ],
)
@pytest.mark.parametrize("main", [train_vqgan, train_parti], ids=IDS)
def test_a_mistake_is_one_line_and_exit_code_2(
    main: Callable[[list[str]], int], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if main is train_parti and "--config" not in words:
        words = [*words, "--image_tokenizer", "somewhere"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err


def test_mistakes_that_show_when_training_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = ["--run_dir", str(tmp_path / "run"), "--data.source.kind", "folder", "--data.source.path", "nowhere"]
    assert train_vqgan(nowhere) == 2
    assert capsys.readouterr().err.startswith("error: data folder 'nowhere' does not exist")
    assert train_parti(["--image_tokenizer", "nowhere", "--run_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: no model in nowhere")
    assert not (tmp_path / "run").exists()


def test_parts_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_vqgan(["--model.image_size", "128"]) == 2
    assert "data.transform.image_size 256 and model.image_size 128 differ" in capsys.readouterr().err
    assert train_vqgan(["--task.logit_laplace_weight", "0.1"]) == 2
    assert "set model.output to logit_laplace or the weight to 0" in capsys.readouterr().err


def test_three_steps_of_both_stages_write_the_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "stage-1", tmp_path / "stage-2"
    (tmp_path / "1.yaml").write_text(STAGE_1)
    (tmp_path / "2.yaml").write_text(STAGE_2)
    assert train_vqgan(["--config", str(tmp_path / "1.yaml"), "--run_dir", str(first)]) == 0
    words = ["--config", str(tmp_path / "2.yaml"), "--run_dir", str(second), "--image_tokenizer", str(first)]
    assert train_parti(words) == 0
    assert "step 3/3" in capsys.readouterr().err

    for run, config_type in ((first, TrainVQGANConfig), (second, TrainPartiConfig)):
        config = load_config(config_type, run / "config.yaml")
        assert config.run_dir == str(run)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [(record["step"], record["split"]) for record in records] == [*((2, "train"), (3, "train"), (3, "val"))]
        assert {"loss", "images_per_second", "seconds", "learning_rate", "gradient_norm"} <= records[0].keys()
        names = [*(["codes-0000003.png"] if run == first else []), "step-0000001.png", "step-0000003.png"]
        assert sorted(path.name for path in (run / "samples").iterdir()) == names
        sample = run / "samples" / "step-0000003.png"
        with Image.open(sample) as image:
            assert image.size[0] > 16
        (checkpoint,) = (run / "checkpoints").iterdir()
        assert checkpoint.name == "step-0000003"
        assert sorted(path.name for path in checkpoint.iterdir()) == [
            *("SHA256SUMS", "about.json", "identity.json", "process-0.pt", "state.pt")
        ]
        assert {"config.json", "model.safetensors"} <= {path.name for path in (run / "model").iterdir()}
    assert {"psnr", "codebook_usage", "codebook_perplexity", "reconstruction_accuracy"} <= _val(first).keys()
    assert {"nats_per_code", "prompt_accuracy"} <= _val(second).keys()
    assert sorted(path.name for path in first.iterdir()) == [
        *("checkpoints", "config.yaml", "metrics.jsonl", "model", "report.html", "samples")
    ]
    assert ImageTokenizer.from_pretrained(first / "model").image_size == 16
    assert TextToImage.from_pretrained(second / "model").image_tokenizer.image_size == 16


def _val(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
