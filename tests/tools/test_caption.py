"""tools/caption.py from the command line: captions, sheets, and one line for each mistake."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parti.fused.captioning.captioner import Captioner
from parti.fused.captioning.decoding import DecodingConfig, decode, decoding_noise
from parti.fused.captioning.files import CaptionConfig
from parti.fused.captioning.heatmaps import heatmap_sheet, words_with_attention
from tests.tiny_captions import tiny_captioner
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.source import printable


def load_main() -> Callable[[list[str]], int]:
    """`main` of tools/caption.py, which is a script and in no package."""
    path = Path(__file__).parents[2] / "tools" / "caption.py"
    spec = importlib.util.spec_from_file_location("tools_caption", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load_main()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder; captions of the tiny captioner differ by image."""
    run = tmp_path_factory.mktemp("run")
    tiny_captioner().save_pretrained(run / "model")
    return str(run)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of three sizes, two of one name."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    names = []
    for name, size in (("one.png", (32, 32)), ("two two.png", (40, 50)), ("more/one.png", (90, 30))):
        color = random.integers(0, 255, (1, 1, 3))
        noise = np.clip(color + random.integers(-60, 60, (*size[::-1], 3)), 0, 255)
        Image.fromarray(noise.astype(np.uint8)).save(folder / name)
        names.append(str(folder / name))
    return names


def expected(model: str, files: list[str], config: DecodingConfig, seed: int = 0) -> list[str]:
    captioner = Captioner.from_pretrained(model)
    transform = ImageTransform(TransformConfig(image_size=32))
    found = []
    for number, file in enumerate(files):
        with Image.open(file) as image, torch.no_grad():
            context = captioner.context(transform(image, None)[None])
        noise = decoding_noise([seed + number], captioner.tokens.length, config.rounds)
        found += captioner.tokens.texts(decode(context, captioner.tokens, config, noise).captions.ids)
    return found


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ([], DecodingConfig()),
        (["--refine", "3"], DecodingConfig(rounds=3)),
        (["--refine", "0", "--exit", "7"], DecodingConfig(rounds=0, exit_row=7)),
        (["--temperature", "1", "--seed", "5"], DecodingConfig(temperature=1.0)),
    ],
)
def test_each_file_is_printed_with_its_caption(
    words: list[str], config: DecodingConfig, model: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", model, *files, *words, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out
    captions = expected(model, files, config, seed=5 if "--seed" in words else 0)
    assert lines == "".join(f"{file}: {printable(caption)}\n" for file, caption in zip(files, captions, strict=True))


def test_heatmaps_are_sheets_with_a_image_a_word(
    model: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", model, *files, "--heatmaps", str(tmp_path / "looks"), "--temperature", "1"]) == 0
    capsys.readouterr()
    assert {path.name for path in (tmp_path / "looks").iterdir()} == {"one.png", "two_two.png", "one-2.png"}
    with Image.open(tmp_path / "looks" / "one.png") as sheet:
        assert sheet.mode == "RGB"
        assert min(sheet.size) > 176


def test_heat_lies_where_the_word_was_looked_for() -> None:
    """Three words of four tokens: the first is two tokens long, and looked at two corners."""
    looks = np.full((4, 16), 0.01)
    for token, position in enumerate((0, 3, 12, 15)):
        looks[token, position] = 0.85
    words = words_with_attention(["tri", "triangle", "triangle and", "triangle and square"], looks)
    assert [word for word, _ in words] == ["triangle", "and", "square"]
    np.testing.assert_allclose(words[0][1], looks[:2].mean(0))
    sheet = np.asarray(heatmap_sheet(Image.new("RGB", (32, 32), "white"), "triangle and square", words), np.int64)
    # Cells of 192 pixels with 20 between them, after a margin of 24: the image, then a word each.
    for number, hot in enumerate(((), ((0, 0), (0, 3)), ((3, 0),), ((3, 3),))):
        cell = sheet[24 : 24 + 192, 24 + number * 212 :][:, :192]
        for row in (0, 3):
            for column in (0, 3):
                blue = cell[row * 48 + 24, column * 48 + 24, 2]
                assert (blue < 130) == ((row, column) in hot), (number, row, column, blue)


def test_a_token_without_text_of_its_own_belongs_to_the_word_before() -> None:
    words = words_with_attention(["", "a", "a cat", "a cat"], np.eye(4))
    assert [word for word, _ in words] == ["a", "cat"]
    np.testing.assert_allclose(words[1][1], [0, 0, 0.5, 0.5])
    assert words_with_attention([""], np.eye(1)) == words_with_attention([], np.zeros((0, 1))) == []


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a call that fails."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_mistake_is_one_line(
    model: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "taken").write_text("")
    good = ["--model", model, files[0]]
    cases = {
        "model is required": [files[0]],
        "images is required": ["--model", model],
        "config.json is missing": ["--model", str(tmp_path / "nowhere"), files[0]],
        "nowhere.png": ["--model", model, str(tmp_path / "nowhere.png")],
        "text.png": ["--model", model, str(tmp_path / "text.png")],
        "refine: input should be less than or equal to 4, received 5": [*good, "--refine", "5"],
        "exit: 8 is not a choice; one of: 3, 7, 11 or 14": [*good, "--exit", "8"],
        "refine: input should be a valid integer, received 'many'": [*good, "--refine", "many"],
        "unknown key round": [*good, "--round", "3"],
        "choose another folder": [*good, "--heatmaps", str(tmp_path / "taken")],
        "--device nonsense cannot be used here": [*good, "--device", "nonsense"],
    }
    for message, words in cases.items():
        assert message in error_of(words, capsys), message


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = "".join(capsys.readouterr().out.split())
    for name, field in CaptionConfig.model_fields.items():
        assert name == "images" or f"--{name}" in text
        assert "".join((field.description or "").split()) in text
