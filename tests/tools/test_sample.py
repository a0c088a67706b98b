"""tools/sample.py from the command line: files, settings, and one line for each mistake."""

import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from parti.base_pipeline import SampleOptions
from parti.completion import Completion, keep_top
from parti.pipeline import TextToImage
from parti.reranker.scorer import Scorer
from parti.sampling.generate import SamplingConfig
from parti.upsampler.upsampler import TrainedOn, Upsampler, UpsamplerConfig
from tests.tiny import tiny_image_tokenizer, tiny_text_to_image
from vqgan.contact_sheet import contact_sheet
from vqgan.data.images.decode import decode_image

RECOMMENDED = SamplingConfig(guidance_scale=2.0, top_p=0.9)
SETTINGS = RECOMMENDED.model_dump(mode="json")


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
    """A run folder."""
    run = tmp_path_factory.mktemp("run")
    tiny_text_to_image(RECOMMENDED).save_pretrained(run / "model")
    return str(run)


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a call that fails."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


def test_writes_images_a_sheet_and_what_they_were_generated_from(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    words = ["--model", model, "--prompt", "a red cat", "--prompt", "ein 🦊 über Zürich", "--n", "3", "--seed", "7"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"6 images in {out}, all on one sheet in {out}/grid.png\n"
    assert "sampling: 100%" in captured.err

    names = [f"000{prompt}-0{sample}.png" for prompt in (0, 1) for sample in (0, 1, 2)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "grid.png", "samples.json"]
    records = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    prompts = ["a red cat"] * 3 + ["ein 🦊 über Zürich"] * 3
    assert records == [
        {"file": name, "prompt": prompt, "seed": seed, "settings": SETTINGS}
        for name, prompt, seed in zip(names, prompts, [7, 8, 9] * 2, strict=True)
    ]
    # What samples.json says gives the image again.
    pipeline = TextToImage.from_pretrained(model)
    for record in records:
        (again,) = pipeline.stream(
            [(record["prompt"], record["seed"])], SampleOptions(SamplingConfig(**record["settings"]))
        )
        with Image.open(out / record["file"]) as image:
            assert image.mode == "RGB"
            assert np.array_equal(image, again.image)
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 3 * 150
        assert grid.height > 2 * 150


def test_the_batch_size_changes_no_image(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a red cat", "--n", "4"]
    for size in ("1", "3"):
        assert main([*words, "--batch-size", size, "--out", str(tmp_path / size)]) == 0
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_given_settings_are_used_and_written(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a red cat", "--n", "1", "--out", str(tmp_path), "--guidance-scale", "1"]
    assert main([*words, "--temperature", "0.5", "--top-k", "9", "--top-p", "1"]) == 0
    (record,) = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    given = {"guidance_scale": 1.0, "temperature": 0.5, "top_k": 9, "top_p": 1.0}
    assert record["settings"] == SETTINGS | given

    words[-1] = "4"
    assert main([*words, "--guidance-schedule", "cosine", "--precision", "int8"]) == 0
    (record,) = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert record["settings"] == SETTINGS | {
        "guidance_scale": 4.0,
        "guidance_schedule": "cosine",
        "precision": "int8",
    }


def test_prompts_from_a_file_follow_those_of_the_command_line(model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa blue dog\r\n\r\n   \r\n  a blue hat  ")
    out = tmp_path / "out"
    words = ["--model", model, "--prompts-file", str(file), "--prompt", "a red cat", "--n", "1", "--out", str(out)]
    assert main(words) == 0
    records = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert [record["prompt"] for record in records] == ["a red cat", "a blue dog", "a blue hat"]
    assert [record["file"] for record in records] == ["0000-00.png", "0001-00.png", "0002-00.png"]


def test_a_prompt_that_is_too_long_is_generated_with_a_note(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["a red cat", "a red cat a blue dog a red hat a blue jug"]
    assert (
        main(["--model", model, "--n", "1", "--out", str(tmp_path), "--prompt", prompts[0], "--prompt", prompts[1]])
        == 0
    )
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith("note: the model reads 8 tokens (its text.length), so the last ")
    assert notes[0].endswith(f"are not seen: {prompts[1]}")
    assert (tmp_path / "0001-00.png").is_file()


def test_a_second_call_replaces_its_own_files_and_keeps_the_others(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a red cat", "--out", str(tmp_path)]
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert main([*words, "--n", "2"]) == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("0000-00.png", "0000-01.png")}
    assert main([*words, "--n", "1", "--seed", "5"]) == 0
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "0000-00.png").read_bytes() != before["0000-00.png"]
    assert (tmp_path / "0000-01.png").read_bytes() == before["0000-01.png"]
    records = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert [record["file"] for record in records] == ["0000-00.png"]


def test_print_config_shows_the_resolved_settings_and_draws_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", model, "--prompt", "a red cat", "--out", str(out), "--top-k", "5", "--device", "cpu"]
    assert main([*words, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {
        "model": model,
        "image_tokenizer": None,
        "prompts": ["a red cat"],
        "n": 4,
        "seed": 0,
        "sampling": SETTINGS | {"top_k": 5},
        "all_scales": False,
        "rerank": 1,
        "reranker": None,
        "image": None,
        "keep_top": None,
        "mask": None,
        "upsample": None,
        "batch_size": 64,
        "watch": False,
        "device": "cpu",
        "out": str(out),
    }
    assert not out.exists()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A wide image with transparency."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path


class Darkness(Scorer):
    """Likes dark images."""

    def __init__(self) -> None:
        pass

    def to(self, _: object) -> "Darkness":
        return self

    def score_images(self, images: Sequence[Image.Image], *_: object) -> torch.Tensor:
        return -torch.tensor([float(np.array(one).mean()) for one in images])


def write_mask(path: Path, *boxes: tuple[int, int, int, int]) -> str:
    """A mask of 32x32 pixels, which is 4x4 codes, black but for the boxes."""
    mask = Image.new("L", (32, 32), 0)
    for box in boxes:
        mask.paste(255, box)
    mask.save(path)
    return str(path)


def test_the_top_of_a_image_is_completed(model: str, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--model", model, "--prompt", "a red cat", "--prompt", "a blue dog", "--n", "3", "--out", str(out)]
    assert main([*words, "--image", str(image), "--keep-top", "0.3", "--seed", "4"]) == 0
    names = [f"000{prompt}-0{sample}.png" for prompt in (0, 1) for sample in (0, 1, 2)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "given.png", "grid.png", "samples.json"]
    records = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert [record["seed"] for record in records] == [4, 5, 6] * 2
    for record in records:  # a row of four
        assert record["completion"] == {"image": str(image), "keep_top": 0.3, "kept": 0.25}

    pipeline = TextToImage.from_pretrained(model)
    keep, opened = keep_top((4, 4), 0.3), decode_image(image, "it")
    again = pipeline(["a red cat", "a blue dog"], num_images=3, seed=4, image=opened, keep=keep).images
    for record, expected in zip(records, again, strict=True):
        with Image.open(out / record["file"]) as generated:
            assert np.array_equal(generated, expected)
    with Image.open(out / "given.png") as given, Image.open(out / "grid.png") as grid:
        shown = np.array(given)
        assert np.array_equal(shown, Completion(opened, keep).shown(pipeline.image_tokenizer, torch.device("cpu")))
        assert (shown[4:] == 128).all()
        # The sheet: what is given and three images for each prompt, each of 176 pixels.
        scale = 176 // 16
        sheet, enlarged = np.array(grid), shown.repeat(scale, 0).repeat(scale, 1)
        assert grid.width == 2 * 24 + 4 * 176 + 3 * 20
        assert np.array_equal(sheet[24 : 24 + 176, 24 : 24 + 176], enlarged)
        second_row = [
            top
            for top in range(24 + 176, grid.height - 176)
            if np.array_equal(sheet[top : top + 176, 24:200], enlarged)
        ]
        assert len(second_row) == 1


def test_what_is_light_in_a_mask_is_generated(model: str, image: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.png", (10, 10, 12, 12), (31, 0, 32, 1))  # one pixel is enough
    out = tmp_path / "out"
    words = ["--model", model, "--prompt", "a red cat", "--n", "1", "--image", str(image), "--mask", mask]
    assert main([*words, "--out", str(out)]) == 0
    (record,) = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert record["completion"] == {"image": str(image), "mask": mask, "kept": 14 / 16}
    with Image.open(out / "given.png") as given:
        gray = (np.array(given) == 128).all(-1)
    expected = np.zeros((16, 16), dtype=bool)
    expected[4:8, 4:8] = expected[:4, 12:] = True
    assert np.array_equal(gray, expected)


def test_completions_are_reranked_and_enlarged(
    model: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Upsampler(UpsamplerConfig(scale=2, blocks=1, channels=8)).save_pretrained(tmp_path / "x2")
    words = ["--model", model, "--prompt", "a red cat", "--image", str(image), "--keep-top", "0.5"]
    assert main([*words, "--n", "6", "--out", str(tmp_path / "all")]) == 0
    monkeypatch.setattr(Scorer, "from_pretrained", lambda _: Darkness())
    chosen = [*words, "--n", "2", "--rerank", "3", "--reranker", "dark", "--upsample", str(tmp_path / "x2"), "--watch"]
    assert main([*chosen, "--batch-size", "4", "--out", str(tmp_path / "best")]) == 0
    images = [np.array(Image.open(path)) for path in sorted((tmp_path / "all").glob("0000-*.png"))]
    records = json.loads((tmp_path / "best" / "samples.json").read_text(encoding="utf-8"))
    for number, record in enumerate(records):
        group = [float(one.mean()) for one in images[3 * number : 3 * number + 3]]
        assert record["seed"] == 3 * number + group.index(min(group))
        assert record["rerank"] == {"model": "dark", "candidates": 3, "score": pytest.approx(-min(group))}
        assert record["completion"]["kept"] == 0.5
        with Image.open(tmp_path / "best" / record["file"]) as enlarged:
            assert enlarged.size == (32, 32)
            seen = Upsampler.from_pretrained(tmp_path / "x2").enlarge(Image.fromarray(images[record["seed"]]))
            assert np.array_equal(enlarged, seen)
    with Image.open(tmp_path / "best" / "given.png") as given:
        assert given.size == (16, 16)


def test_an_upsampler_of_another_decoder_is_said_and_one_of_other_codes_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upsampler = Upsampler(UpsamplerConfig(scale=2, blocks=1, channels=8))
    own = TrainedOn.of(TextToImage.from_pretrained(model).image_tokenizer)
    words = ["--model", model, "--prompt", "a cat", "--n", "1", "--upsample", str(tmp_path / "x2"), "--out"]
    for trained_on, said in ((own, False), (own._replace(decoder="another"), True)):
        upsampler.trained_on = trained_on
        upsampler.save_pretrained(tmp_path / "x2")
        assert main([*words, str(tmp_path / "out")]) == 0
        assert ("note: the upsampler was trained on images of another decoder" in capsys.readouterr().err) == said
    upsampler.trained_on = own._replace(codes=own.codes._replace(quantizer="another"))
    upsampler.save_pretrained(tmp_path / "x2")
    message = error_of([*words, str(tmp_path / "none")], capsys)
    assert message.startswith("the upsampler was trained on images of another image tokenizer than the model's")
    assert not (tmp_path / "none").exists()


def test_images_and_masks_that_do_not_serve(
    model: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", model, "--prompt", "a cat", "--out", str(out), "--image"]
    text = tmp_path / "text.png"
    text.write_text("no image", encoding="utf-8")
    message = error_of([*words, str(text), "--keep-top", "0.5"], capsys)
    assert message.startswith(f"image {text}: not an image in a known format")
    message = error_of([*words, str(image), "--mask", str(text)], capsys)
    assert message.startswith(f"mask {text}: not an image in a known format")
    black = write_mask(tmp_path / "black.png")
    message = error_of([*words, str(image), "--mask", black], capsys)
    assert message == f"mask {black} is black all over, so there is nothing to draw; make some of it white"
    dots = [(8 * x, 8 * y, 8 * x + 1, 8 * y + 1) for x in range(4) for y in range(4)]
    white = write_mask(tmp_path / "white.png", *dots)
    message = error_of([*words, str(image), "--mask", white], capsys)
    assert message.startswith(f"mask {white} leaves none of 4x4 codes all black, so nothing stays of the image; ")
    assert not out.exists()


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What OUT/unfinished.png is, just before each time that it may be written."""
    contents: list[bytes | None] = []
    decode_partial, path = TextToImage.decode_partial, tmp_path / "out" / "unfinished.png"

    def look(self: TextToImage, codes: torch.Tensor) -> torch.Tensor:
        contents.append(path.read_bytes() if path.exists() else None)
        return decode_partial(self, codes)

    monkeypatch.setattr(TextToImage, "decode_partial", look)
    return contents


def test_unfinished_images_can_be_watched(
    model: str, tmp_path: Path, seen: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["--model", model, "--prompt", "a red cat", "--n", "3", "--batch-size", "2", "--out", str(out)]
    assert main(words) == 0
    assert seen == []  # nothing is decoded for nobody
    finished = {path.name: path.read_bytes() for path in out.iterdir()}

    monkeypatch.setattr("parti.sample_files._PAUSE", 0)
    monkeypatch.setattr("parti.sample_files._REST", 0)
    assert main([*words, "--watch"]) == 0
    assert len(seen) == 8  # four rows of two batches
    assert seen[0] is None
    sheets = [Image.open(io.BytesIO(one)) for one in seen[1:] if one is not None]
    assert [sheet.width for sheet in sheets] == [2 * 24 + 2 * 176 + 20] * 4 + [2 * 24 + 176] * 3
    assert len(set(seen)) == 8  # each shows more
    assert {path.name: path.read_bytes() for path in out.iterdir()} == finished


def test_unfinished_images_are_written_now_and_then(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = []

    def count(*given: Any, **options: Any) -> Image.Image:
        sheets.append(given)
        return contact_sheet(*given, **options)

    monkeypatch.setattr("parti.sample_files.contact_sheet", count)
    monkeypatch.setattr("parti.sample_files._PAUSE", 60)
    words = ["--model", model, "--prompt", "a red cat", "--n", "1", "--watch", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert len(sheets) == 2  # the first row and grid.png: all of it takes less than the pause


def test_an_interrupted_call_leaves_no_unfinished_image(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sheets = tmp_path / "out", []

    def interrupt(generated: list[Image.Image], *_: object, **__: object) -> Image.Image:
        if sheets:
            assert (out / "unfinished.png").exists()
            raise KeyboardInterrupt
        sheets.append(generated)
        return generated[0]

    monkeypatch.setattr("parti.sample_files._PAUSE", 0)
    monkeypatch.setattr("parti.sample_files._REST", 0)
    monkeypatch.setattr("parti.sample_files.contact_sheet", interrupt)
    assert main(["--model", model, "--prompt", "a red cat", "--n", "1", "--watch", "--out", str(out)]) == 130
    assert list(out.iterdir()) == []


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("model", "prompt", "prompts_file", "n", "seed", "guidance_scale", "temperature", "top_k", "top_p"):
        assert f"--{option} " in text
    for name in ("guidance_schedule", "precision"):
        assert f"--{name} {'|'.join(get_args(SamplingConfig.model_fields[name].annotation))} " in text
    for phrase in ("--image str", "--keep_top float", "--mask str", "--watch bool", "--batch_size int [64]"):
        assert phrase in text
    for phrase in ("its pixels become the image tokenizer's", "as the model recommends", "0 is off", "(0, 1]"):
        assert phrase in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--promt=a cat"], "unknown option --promt; did you mean --prompt?"),
        (["--guidance", "3"], "unknown option --guidance; did you mean --guidance_scale?"),
        (["--xyzzy"], "unknown option --xyzzy; valid: --prompt, --guidance_scale, "),
        (
            ["a red cat"],
            "expected an option like --section.field, received 'a red cat'",
        ),
        (["--n", "many"], "command line: n: input should be a valid integer, received 'many'"),
        (["--n", "0"], "command line: n: input should be greater than 0, received 0"),
        (["--seed", "-1"], "command line: seed: input should be greater than or equal to 0, received -1"),
        (["--batch-size", "0"], "command line: batch_size: input should be greater than 0, received 0"),
        (
            ["--guidance-scale", "-1"],
            "command line: sampling.guidance_scale: input should be greater than or equal to 0",
        ),
        (["--temperature", "nan"], "command line: sampling.temperature: "),
        (
            ["--top-k", "-5"],
            "command line: sampling.top_k: input should be greater than or equal to 0, received -5",
        ),
        (["--top-p", "0"], "command line: sampling.top_p: input should be greater than 0, received 0"),
        (["--guidance-schedule", "up"], "command line: sampling.guidance_schedule: 'up' is not a choice"),
        (["--precision", "fp8"], "command line: sampling.precision: 'fp8' is not a choice; did you mean fp32?"),
        (
            ["--image", "a.png"],
            "command line: image is given and nothing says what stays of it; give --keep-top SHARE",
        ),
        (
            ["--keep-top", "0.5"],
            "command line: keep_top says what stays of an image, and none is given; give --image",
        ),
        (
            ["--mask", "m.png"],
            "command line: mask says what stays of an image, and none is given; give --image FILE",
        ),
        (
            ["--image", "a.png", "--keep-top", "0.5", "--mask", "m.png"],
            "command line: image is given and both keep_top and mask say what stays of it; give --keep-top SHARE or",
        ),
        (
            ["--image", "a.png", "--keep-top", "1"],
            "command line: keep_top: input should be less than 1, received 1",
        ),
        (
            ["--image", "a.png", "--keep-top", "0"],
            "command line: keep_top: input should be greater than 0, received",
        ),
        (["--image", "nowhere.png", "--keep-top", "0.5"], "image nowhere.png: the file is missing; give another file"),
        (["--device", "toaster"], "--device toaster cannot be used here: "),
        (["--rerank", "0"], "command line: rerank: input should be greater than 0, received 0"),
        (["--rerank", "4"], "command line: rerank is 4 and nothing chooses among the candidates; give --reranker"),
        (["--reranker", "runs/clip"], "command line: reranker is given and there is one candidate to choose from"),
        (["--prompt", " "], "a prompt is blank"),
        (["--prompt"], "--prompt needs a value: --prompt VALUE"),
        (["--prompts-file", "nowhere.txt"], "prompts file 'nowhere.txt' cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert error_of(["--model", model, "--out", str(out), "--prompt", "a cat", *words], capsys).startswith(message)
    assert not out.exists()


def test_missing_options_are_named(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of([], capsys).startswith("--model is missing")
    assert error_of(["--model", model, "--prompt", "a cat"], capsys).startswith("--out is missing")
    assert error_of(["--model", model, "--out", "out"], capsys).startswith("no prompt: give --prompt TEXT")


def test_folders_and_files_that_do_not_serve(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "a cat", "--out", str(tmp_path / "out")]
    assert "config.json is missing" in error_of(["--model", str(tmp_path / "nowhere"), *words], capsys)

    tiny_image_tokenizer().save_pretrained(tmp_path / "stage1")
    message = error_of(["--model", str(tmp_path / "stage1"), *words], capsys)
    assert message.endswith("holds no text-to-image model; give the folder of a stage-2 run")

    empty = tmp_path / "empty.txt"
    empty.write_text("\n  \n", encoding="utf-8")
    message = error_of(["--model", model, "--prompts-file", str(empty), *words], capsys)
    assert message.endswith("is empty; write one prompt a line")
    empty.write_bytes(b"a caf\xe9")
    assert error_of(["--model", model, "--prompts-file", str(empty), *words], capsys).endswith("not text in UTF-8")

    taken = tmp_path / "taken"
    taken.write_text("a file", encoding="utf-8")
    message = error_of(["--model", model, "--prompt", "a cat", "--out", str(taken)], capsys)
    assert message.startswith(f"cannot write to {str(taken)!r}: ")
