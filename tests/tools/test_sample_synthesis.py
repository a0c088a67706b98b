"""tools/sample.py with a model that draws several scales in one pass."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from parti.fused.rows import TrunkConfig
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.noise import NoiseConfig
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.fused.text_side import TextSideConfig, text_space
from tests.tiny import tiny_image_tokenizer, tiny_text_to_image, tiny_text_tokenizer
from vqgan.hub.model_folder import save_model_folder

TEXT = TextSideConfig(width=8, heads=2, mlp_width=16, dropout=0.0)
MODEL = SynthesisConfig(
    trunk=TrunkConfig(image_size=32, deepest_row=4, channels=(8, 8, 8, 8), text=TEXT),
    finest_channels=8,
    noise=NoiseConfig(channels=4, hidden_channels=8),
)


def load_main() -> Callable[[list[str]], int]:
    """`main` of tools/sample.py, which is a script and in no package."""
    path = Path(__file__).parents[2] / "tools" / "sample.py"
    spec = importlib.util.spec_from_file_location("tools_sample", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load_main()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder; it draws 8, 16 and 32 pixels."""
    torch.manual_seed(0)
    tokenizer = tiny_text_tokenizer()
    run = tmp_path_factory.mktemp("run")
    generator = SynthesisGenerator(MODEL, text_space(tokenizer))
    ProgressiveTextToImage(generator, tokenizer).save_pretrained(run / "model")
    return str(run)


def words(model: str, out: Path, *more: str) -> list[str]:
    return ["--model", model, "--prompt", "a red cat", "--n", "2", "--device", "cpu", "--out", str(out), *more]


def test_draws_the_largest_scale_like_any_other_generator(model: str, tmp_path: Path) -> None:
    assert main(words(model, tmp_path, "--seed", "5")) == 0
    records = json.loads((tmp_path / "samples.json").read_text())
    assert records == [{"file": f"0000-0{i}.png", "prompt": "a red cat", "seed": 5 + i} for i in (0, 1)]
    expected = ProgressiveTextToImage.from_pretrained(model)("a red cat", num_images=2, seed=5).images
    for record, image in zip(records, expected, strict=True):
        with Image.open(tmp_path / record["file"]) as generated:
            assert generated.size == (32, 32)
            assert generated.tobytes() == image.tobytes()
    assert (tmp_path / "grid.png").is_file()


def test_all_scales_stand_side_by_side(model: str, tmp_path: Path) -> None:
    assert main(words(model, tmp_path / "one")) == 0
    assert main(words(model, tmp_path / "all", "--all-scales")) == 0
    with Image.open(tmp_path / "one" / "0000-00.png") as one, Image.open(tmp_path / "all" / "0000-00.png") as every:
        assert every.size == (96, 32)
        assert every.crop((64, 0, 96, 32)).tobytes() == one.tobytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--top-k", "3"], "--top-k: the model in "),
        (["--guidance-scale", "2"], "--guidance-scale: the model in "),
        (["--precision", "bf16"], "--precision: the model in "),
        (["--watch"], "--watch: the model in "),
        (["--image", "x.png", "--keep-top", "0.5"], "--image: the model in "),
        (["--all-scales", "--upsample", "somewhere"], "upsample wants one image, and all_scales makes it three"),
        (["--all-scales", "--rerank", "2", "--reranker", "x"], "rerank wants one image"),
    ],
)
def test_options_that_mean_nothing_here_are_one_line(
    more: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(model, tmp_path / "out", *more)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_of_codes_has_no_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_text_to_image().save_pretrained(tmp_path / "codes")
    assert main(words(str(tmp_path / "codes"), tmp_path / "out", "--all-scales")) == 2
    assert "generates images of one size" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["fused_inpainting", "image tokenizer"])
def test_a_folder_that_draws_no_prompts_says_so(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    if kind == "image tokenizer":
        tiny_image_tokenizer().save_pretrained(folder)
    else:
        save_model_folder(folder, {"kind": kind}, {"weight": torch.zeros(1)})
    assert main(words(str(folder), tmp_path / "out")) == 2
    error = capsys.readouterr().err
    shown = "fused_inpainting" if kind == "fused_inpainting" else "vit_vqgan"
    assert error.endswith(f", of kind {shown!r}, holds no text-to-image model; give the folder of a stage-2 run\n")


def test_the_option_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--all-scales" in capsys.readouterr().out
