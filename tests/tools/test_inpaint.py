"""tools/train_parti.py with a fused objective, and tools/inpaint.py with what it gives."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parti.fused.inpainting.files import InpaintConfig, inpaint, light_parts
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.train_inpainting import TrainInpaintingConfig
from parti.objectives import OBJECTIVES, choose_objective
from vqgan.config.schema import ConfigError, describe_fields, load_config
from vqgan.data.sources.shapes import Shapes, ShapesConfig

ROOT = Path(__file__).parents[2]
RUN = """
objective: fused_inpainting
data:
  source: {kind: shapes, train_size: 8, val_size: 4}
  transform: {image_size: 16}
  batch_size: 4
text: {vocab_size: 400, length: 16, training_captions: 8}
model:
  image_size: 16
  deepest_row: 3
  channels: [8, 8, 8]
  text: {width: 16, heads: 2, mlp_width: 16}
task: {perceptual: {weight: 0}, optimizer: {learning_rate: 0.001}, precision: fp32}
loop: {steps: 2, log_every: 1}
preview_images: 2
"""
CAPTION = "a small [MASK] circle above a large blue square"


def load_main(name: str) -> Callable[[list[str]], int]:
    """`main` of a tool, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


train_parti, main = load_main("train_parti"), load_main("inpaint")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the pretraining task."""
    folder = tmp_path_factory.mktemp("inpainting")
    (folder / "config.yaml").write_text(RUN)
    assert train_parti(["--config", str(folder / "config.yaml"), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An image of 32 x 32 pixels, a mask whose left half is white, one that is black, and what is no image."""
    folder = tmp_path_factory.mktemp("files")
    Shapes(ShapesConfig(), "val", 32)[0].image.save(folder / "image.png")
    half = np.zeros((32, 32), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(folder / "mask.png")
    Image.new("L", (32, 32)).save(folder / "black.png")
    Image.new("L", (16, 32), 255).save(folder / "narrow.png")
    (folder / "text.png").write_text("no image")
    return {path.stem: str(path) for path in folder.iterdir()}


def error_of(words: list[str], capsys: pytest.CaptureFixture[str], tool: Callable[[list[str]], int] = main) -> str:
    """The one line on standard error of a call that fails."""
    assert tool(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_run_folder_is_as_of_any_other_run(run: Path) -> None:
    config = load_config(TrainInpaintingConfig, run / "config.yaml")
    assert config.run_dir == str(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["split"]) for record in records] == [(1, "train"), (2, "train"), (2, "val")]
    assert {"loss", "loss_hole", "loss_valid", "loss_words", "learning_rate", "gradient_norm"} <= records[0].keys()
    assert {"hole_l1", "hole_color", "word_accuracy"} <= records[-1].keys()
    with Image.open(run / "samples" / "step-0000002.png") as image:
        assert image.width > 4 * 16
    assert Inpainter.from_pretrained(run).network.trunk.config == config.model


def test_both_are_completed_at_once(
    run: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", str(run), "--image", files["image"], "--mask", files["mask"], "--caption", CAPTION]
    assert main([*words, "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out.strip()
    before, after = CAPTION.split("[MASK]")
    assert printed.startswith(f"{before.strip()} [")
    assert printed.endswith(f"] {after.strip()}")
    with Image.open(out / "completed.png") as completed, Image.open(files["image"]) as given:
        assert completed.size == (16, 16)
        small = np.asarray(given.resize((16, 16), Image.Resampling.LANCZOS))
        assert np.array_equal(np.asarray(completed)[:, 8:], small[:, 8:])
        assert not np.array_equal(np.asarray(completed)[:, :8], small[:, :8])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 3 * 100


def test_each_alone(run: Path, files: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    words = inpaint(InpaintConfig(model=str(run), image=files["image"], caption=CAPTION, out=out))
    assert "[MASK]" not in words.caption
    with Image.open(files["image"]) as given:
        small = given.resize((16, 16), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(words.image), np.asarray(small))
    hole = inpaint(InpaintConfig(model=str(run), image=files["image"], mask=files["mask"], out=out))
    assert hole.caption == ""


def test_a_pixel_that_is_light_anywhere_is_generated_anew() -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[:, :2] = 255  # cut away: the centered square begins at the third column
    mask[0, 2] = 128
    mask[5, 9] = 127
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 0] = True
    assert torch.equal(light_parts(Image.fromarray(mask), 4), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--caption", "a red cat"], "nothing is missing; give --mask FILE, or a --caption with [MASK] in it"),
        (["--mask", "black"], "is all black, so nothing is missing; make some of it white"),
        (["--mask", "narrow"], "has 16x32 pixels, the image 32x32; give one as large as the image"),
        (["--mask", "text"], "give another file"),
        (["--mask", "mask", "--image", "text"], "give another file"),
        (["--mask", "mask", "--model", "nowhere"], "config.json is missing"),
        (["--mask", "mask", "--device", "tpu:7"], "cannot be used here"),
        (["--caption", "[MASK] " * 17], "longer than the model's 16 tokens, so its last [MASK] is cut off; shorten it"),
        (["--mask", "mask", "--color", "red"], "unknown key color"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    message: str,
    run: Path,
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"--model": str(run), "--image": files["image"], "--out": str(tmp_path / "out")}
    given |= {name: files.get(value, value) for name, value in zip(words[::2], words[1::2], strict=True)}
    assert message in error_of([word for pair in given.items() for word in pair], capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(run: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(run), "--image", files["image"], "--caption", CAPTION, "--out", files["image"]]
    assert "choose another folder" in error_of(words, capsys)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in InpaintConfig.model_fields.items():
        assert f"--{name} " in text
        assert " ".join(str(field.description).split()) in text
    assert train_parti(["--help", "--objective", "fused_inpainting"]) == 0
    text = capsys.readouterr().out
    for field in describe_fields(TrainInpaintingConfig):
        assert f"--{field.name}  {field.type}  [{field.default}]" in text


def test_the_objective_is_chosen_by_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(RUN)
    assert choose_objective(config) == OBJECTIVES["fused_inpainting"]
    assert choose_objective(None, None, ["next_token"]) == OBJECTIVES["next_token"]
    assert choose_objective(config, "next_token") == OBJECTIVES["next_token"]
    with pytest.raises(ConfigError, match="'fused_impainting' is not a choice; did you mean fused_inpainting"):
        choose_objective(None, "fused_impainting")
    assert "cannot be read" in error_of(["--config", str(tmp_path / "none.yaml")], capsys, train_parti)
    assert "task.hole_weight" in error_of(["--config", str(config), "--task.hole_weigth", "3"], capsys, train_parti)
