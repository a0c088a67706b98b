"""tools/train_upsampler.py from the command line, and tools/sample.py --upsample with what it gives."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from parti.upsampler.upsampler import Upsampler, UpsamplerConfig
from tests.tiny import tiny_image_tokenizer, tiny_text_to_image
from vqgan.config.schema import describe_fields, load_config

ROOT = Path(__file__).parents[2]
RUN = """
objective: upsampler
data:
  source: {kind: shapes, train_size: 8, val_size: 4}
  transform: {image_size: 32}
  batch_size: 4
model: {blocks: 1, channels: 8, expansion: 2}
task:
  perceptual: {weight: 0}
  adversarial: {discriminator: {channels: [4, 4, 4, 4]}}
  optimizer: {learning_rate: 0.01}
loop: {steps: 3, log_every: 2}
preview_images: 2
"""


def load_main(name: str) -> Callable[[list[str]], int]:
    """`main` of a tool, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


train_upsampler, sample = load_main("train_upsampler"), load_main("sample")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stage-2 run folder; it draws 16 x 16 pixels."""
    run = tmp_path_factory.mktemp("run")
    tiny_text_to_image().save_pretrained(run / "model")
    return str(run)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upsampler's run folder, for that tokenizer."""
    folder = tmp_path_factory.mktemp("upsampler")
    tiny_image_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "config.yaml").write_text(RUN)
    words = ["--config", str(folder / "config.yaml"), "--image_tokenizer", str(folder / "tokenizer")]
    assert train_upsampler([*words, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_upsampler(["--help"]) == 0
    text = capsys.readouterr().out
    letters = "".join(text.split())  # help is wrapped, after hyphens too
    for field in describe_fields(TrainUpsamplerConfig):
        assert f"--{field.name}  {field.type}  [{field.default}]" in text
        assert "".join(field.help.split()) in letters
    assert "accelerate launch tools/train_upsampler.py --config configs/upsampler/shapes_2x.yaml" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "image_tokenizer is required and has no default"),
        (["--image_tokenizer", "nowhere"], "no model in nowhere: config.json is missing"),
        (["--image_tokenizer", "x", "--model.scale", "3"], "model.scale: 3 is not a choice; one of: 2 or 4"),
        (["--image_tokenizer", "x", "--task.l2_weight", "0", "--task.perceptual.weight", "0"], "are all 0"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_upsampler(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_run_folder_is_written(run: Path) -> None:
    config = load_config(TrainUpsamplerConfig, run / "config.yaml")
    assert config.run_dir == str(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["split"]) for record in records] == [(2, "train"), (3, "train"), (3, "val")]
    assert {"loss", "loss_l2", "loss_discriminator", "learning_rate", "gradient_norm"} <= records[0].keys()
    assert {"psnr", "ssim", "bicubic_psnr", "bicubic_ssim"} <= records[-1].keys()
    with Image.open(run / "samples" / "step-0000003.png") as image:
        assert image.width > 4 * 32
    assert Upsampler.from_pretrained(run).config == config.model


def test_upsampled_images_have_twice_the_sides_and_say_so(model: str, run: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a red cat", "--prompt", "a blue dog", "--n", "2", "--device", "cpu"]
    assert sample([*words, "--out", str(tmp_path / "plain")]) == 0
    assert sample([*words, "--out", str(tmp_path / "large"), "--upsample", str(run)]) == 0
    plain, large = (json.loads((tmp_path / name / "samples.json").read_text()) for name in ("plain", "large"))
    assert large == [record | {"upsample": {"model": str(run), "scale": 2}} for record in plain]
    upsampler = Upsampler.from_pretrained(run)
    for record in plain:
        with (
            Image.open(tmp_path / "plain" / record["file"]) as small,
            Image.open(tmp_path / "large" / record["file"]) as enlarged,
        ):
            assert (small.size, enlarged.size) == ((16, 16), (32, 32))
            assert np.array_equal(enlarged, upsampler.enlarge(small))
    assert (tmp_path / "large" / "grid.png").is_file()


def test_an_upsampler_of_scale_four(model: str, tmp_path: Path) -> None:
    Upsampler(UpsamplerConfig(scale=4, blocks=1, channels=8)).save_pretrained(tmp_path / "x4")
    words = ["--model", model, "--prompt", "a red cat", "--n", "1", "--upsample", str(tmp_path / "x4")]
    assert sample([*words, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "0000-00.png") as enlarged:
        assert enlarged.size == (64, 64)


@pytest.mark.parametrize("folder", ["nowhere", "stage 2", ""])
def test_a_folder_without_an_upsampler_is_refused_before_anything_is_generated(
    folder: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = model if folder == "stage 2" else str(tmp_path / folder) if folder else ""
    assert sample(["--model", model, "--prompt", "a cat", "--upsample", given, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert ("holds no upsampler" if folder == "stage 2" else "config.json is missing") in captured.err
    assert not out.exists()


def test_the_option_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--upsample str|null [null] Run folder of an upsampler" in text
