"""tools/sample.py from the command line: files, settings, and one line for each mistake."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import tiny_image_tokenizer, tiny_text_to_image

from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig

RECOMMENDED = SamplingConfig(guidance_scale=2.0, top_p=0.9)
SETTINGS = {"guidance_scale": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 0.9}


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


def test_writes_pictures_a_sheet_and_what_they_were_drawn_from(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    words = ["--model", model, "--prompt", "a red cat", "--prompt", "ein 🦊 über Zürich", "--n", "3", "--seed", "7"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"6 pictures in {out}, all on one sheet in {out}/grid.png\n"
    assert "sampling: 100%" in captured.err

    names = [f"000{prompt}-0{sample}.png" for prompt in (0, 1) for sample in (0, 1, 2)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "grid.png", "samples.json"]
    records = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    prompts = ["a red cat"] * 3 + ["ein 🦊 über Zürich"] * 3
    assert records == [
        {"file": name, "prompt": prompt, "seed": seed, "settings": SETTINGS}
        for name, prompt, seed in zip(names, prompts, [7, 8, 9] * 2, strict=True)
    ]
    # What samples.json says gives the picture again.
    pipeline = TextToImage.from_pretrained(model)
    for record in records:
        (again,) = pipeline(record["prompt"], seed=record["seed"], **record["settings"]).images
        with Image.open(out / record["file"]) as picture:
            assert picture.mode == "RGB"
            assert np.array_equal(picture, again)
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 3 * 150
        assert grid.height > 2 * 150


def test_the_batch_size_changes_no_picture(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a red cat", "--n", "4"]
    for size in ("1", "3"):
        assert main([*words, "--batch-size", size, "--out", str(tmp_path / size)]) == 0
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_given_settings_are_used_and_written(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a red cat", "--n", "1", "--out", str(tmp_path), "--guidance-scale", "1"]
    assert main([*words, "--temperature", "0.5", "--top-k", "9", "--top-p", "1"]) == 0
    (record,) = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert record["settings"] == {"guidance_scale": 1.0, "temperature": 0.5, "top_k": 9, "top_p": 1.0}


def test_prompts_from_a_file_follow_those_of_the_command_line(model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa blue dog\r\n\r\n   \r\n  a blue hat  ")
    out = tmp_path / "out"
    words = ["--model", model, "--prompts-file", str(file), "--prompt", "a red cat", "--n", "1", "--out", str(out)]
    assert main(words) == 0
    records = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert [record["prompt"] for record in records] == ["a red cat", "a blue dog", "a blue hat"]
    assert [record["file"] for record in records] == ["0000-00.png", "0001-00.png", "0002-00.png"]


def test_a_prompt_that_is_too_long_is_drawn_with_a_note(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["a red cat", "a red cat a blue dog a red hat a blue jug"]
    assert (
        main(["--model", model, "--n", "1", "--out", str(tmp_path), "--prompt", prompts[0], "--prompt", prompts[1]])
        == 0
    )
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: the model reads 8 tokens; the end of this prompt is not seen: {prompts[1]}"]
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
        "prompts": ["a red cat"],
        "n": 4,
        "seed": 0,
        "sampling": SETTINGS | {"top_k": 5},
        "rerank": 1,
        "reranker": None,
        "upsample": None,
        "batch_size": 64,
        "device": "cpu",
        "out": str(out),
    }
    assert not out.exists()


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("model", "prompt", "prompts-file", "n", "seed", "guidance-scale", "temperature", "top-k", "top-p"):
        assert f"--{option} " in text
    for phrase in ("--batch-size COUNT", "[64]", "at least 1. [4]", "[as the model recommends]", "0 is off", "(0, 1]"):
        assert phrase in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top_k", "3"], "unknown option --top_k; did you mean --top-k?"),
        (["--promt=a cat"], "unknown option --promt; did you mean --prompt?"),
        (["--guidance", "3"], "unknown option --guidance; did you mean --guidance-scale?"),
        (["--xyzzy"], "unknown option --xyzzy; valid: --model, --prompt, "),
        (["a red cat"], "unexpected word 'a red cat'; a prompt stands in quotes after --prompt"),
        (["--n", "many"], "argument --n: invalid int value: 'many'"),
        (["--n", "0"], "command line: n: input should be greater than 0, received 0"),
        (["--seed", "-1"], "command line: seed: input should be greater than or equal to 0, received -1"),
        (["--batch-size", "0"], "command line: batch_size: input should be greater than 0, received 0"),
        (["--guidance-scale", "-1"], "sampling settings: guidance_scale: input should be greater than or equal to 0"),
        (["--temperature", "nan"], "sampling settings: temperature: "),
        (["--top-k", "-5"], "sampling settings: top_k: input should be greater than or equal to 0, received -5"),
        (["--top-p", "0"], "sampling settings: top_p: input should be greater than 0, received 0.0"),
        (["--device", "toaster"], "--device toaster cannot be used here: "),
        (["--rerank", "0"], "command line: rerank: input should be greater than 0, received 0"),
        (["--rerank", "4"], "command line: rerank is 4 and nothing chooses among the candidates; give --reranker"),
        (["--reranker", "runs/clip"], "command line: reranker is given and there is one candidate to choose from"),
        (["--prompt", " "], "a prompt is blank"),
        (["--prompt"], "argument --prompt: expected one argument"),
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
