"""check_data.py: what is wrong with a data set is named, and the exit code says whether anything is."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from parti.data_check import check as check_module
from parti.data_check import first_batch as image_module
from parti.data_check.check import DataReport, SplitReport
from parti.data_check.report import report_text
from parti.data_check.settings import CheckConfig, load_check_config
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.vqgan.data.tiny_shards import shades, write_shard
from vqgan.config.options import split_options
from vqgan.data.source import DataError, UnusableSample

ROOT = Path(__file__).parents[2]


def load_settings(words: list[str]) -> CheckConfig:
    """What the command makes of its words."""
    options = list(split_options(words))
    path = {option.name: option.word for option in options}.get("config")
    return load_check_config(path and Path(path), [option for option in options if option.name != "config"])


def load_main() -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location("tools_check_data", ROOT / "tools" / "check_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load_main()


def draw(path: Path, seed: int, caption: str | None = "a cat") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight sound images to train on, two held out; runs write into a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for seed in range(8):
        draw(tmp_path / "data" / "train" / f"{seed}.png", seed, f"a cat number {seed}")
    for seed in (8, 9):
        draw(tmp_path / "data" / "val" / f"{seed}.png", seed)
    return tmp_path / "data"


def run(data: Path, *words: str) -> int:
    return main(["--data", str(data), "--data.transform.image_size", "8", "--data.batch_size", "4", *words])


def report(data: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = run(data, "--report", "check.json", "--image", "null", *words)
    return code, json.loads(Path("check.json").read_text(encoding="utf-8"))


def test_a_sound_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data) == 0
    text = capsys.readouterr().out
    assert "no problems found" in text
    assert text.endswith("\nout/check_data.png shows the first batch as the model sees it\n")
    assert "captions: 10, 9 different" in text
    with Image.open("out/check_data.png") as sheet:
        assert sheet.width > 400, "four images side by side"
    code, found = report(data)
    assert (code, found["problems"], found["interrupted"]) == (0, [], False)
    assert found["splits"]["train"] | {"sizes": None} == {
        **{"total": 8, "looked_at": 8, "usable": 8, "without_caption": 0},
        **{"sizes": None, "broken": []},
    }
    assert found["splits"]["train"]["sizes"]["smallest"] == [24, 16]
    assert not found["exact_duplicates"]
    assert not found["near_duplicates"]


def test_broken_items_are_named_with_their_cause(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = (data / "train" / "0.png").read_bytes()
    (data / "train" / "cut.png").write_bytes(sound[: len(sound) // 2])
    (data / "train" / "empty.png").write_bytes(b"")
    draw(data / "train" / "bare.png", 20, caption=None)
    assert run(data, "--image", "null") == 1
    text = capsys.readouterr().out
    assert "train cut.png" in text
    assert "the file is empty (0 bytes)\n      train empty.png" in text
    assert "problem: broken items: 2 of 13" in text
    assert run(data, "--image", "null", "--max-broken", "0.2") == 0
    code, found = report(data, "--require-captions", "true")
    broken = {item["name"]: item["cause"] for item in found["splits"]["train"]["broken"]}
    assert code == 1
    assert broken["bare.png"] == "no caption"
    assert set(broken) == {"bare.png", "cut.png", "empty.png"}


def test_a_val_image_that_is_trained_on_is_called_out(data: Path) -> None:
    shutil.copy(data / "train" / "3.png", data / "val" / "leak.png")
    shutil.copy(data / "train" / "4.png", data / "train" / "again.png")
    code, found = report(data)
    assert code == 1
    assert found["val_and_trained_on"] == [{"val": "leak.png", "train": "3.png"}]
    assert sorted(found["exact_duplicates"]) == [
        [["train", "3.png"], ["val", "leak.png"]],
        [["train", "4.png"], ["train", "again.png"]],
    ]
    (problem,) = found["problems"]
    assert problem.startswith("validation images that are also trained on: 1 (the first: leak.png is 3.png)")
    assert report(data, "--max-shared", "0.5")[0] == 0


def test_captions_against_the_token_limit_and_against_a_given_vocabulary(data: Path, tmp_path: Path) -> None:
    code, found = report(data, "--text.length", "3")
    assert code == 1
    assert found["captions"]["cut"] == 8
    assert "8 of 10 captions (80.0%, allowed 10.0%) are longer than 3 tokens" in found["problems"][0]
    assert report(data, "--text.length", "3", "--max-cut", "1")[0] == 0
    vocabulary = TextTokenizer.train(["a cat"] * 3, TextTokenizerConfig(vocab_size=300, length=5))
    vocabulary.save_pretrained(tmp_path / "run")
    code, found = report(data, "--text", str(tmp_path / "run"))
    assert (code, found["captions"]["length"], found["captions"]["cut"]) == (1, 5, 8)
    assert report(data, "--text.length", "3", "--limit", "2")[1]["splits"]["train"]["looked_at"] == 2


def test_the_image_shows_what_the_model_reads_of_a_long_caption(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def sheet(images: list[Image.Image], captions: list[str]) -> Image.Image:
        shown.extend(captions)
        return images[0]

    monkeypatch.setattr(image_module, "contact_sheet", sheet)
    (data / "train" / "0.txt").unlink()
    assert run(data, "--text.length", "2", "--data.batch_size", "8", "--max-cut", "1", "--images", "100") == 0
    assert sorted(shown) == sorted(["(no caption)", *["a cat [cut]"] * 7])


def test_several_captions_are_pointed_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "train" / "0.txt").write_text("one\ntwo\n")
    assert run(data, "--image", "null") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "several captions: 1 of the first 8 training images" in text
    _, found = report(data, "--data.source.captions", "random")
    assert found["captions"]["captions"] == 11
    assert found["images_with_several_captions"] is None


def test_ctrl_c_reports_what_was_found(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = check_module.scan

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, look in enumerate(whole(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield look

    monkeypatch.setattr(check_module, "scan", interrupted)
    assert run(data) == 130
    text = capsys.readouterr().out
    assert "interrupted: the metrics are of what was looked at until then" in text
    assert "looked at" in text
    assert "3" in text.partition("looked at")[2].splitlines()[0]
    assert not Path("out").exists()


def test_a_line_now_and_then_where_there_is_no_terminal(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_module, "_LINE_EVERY", -1.0)
    assert run(data, "--image", "null") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[3].startswith("train: 4 of 8 items, ")
    assert lines[3].endswith(" left")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to check: give --data PATH"),
        (["--dta", "x"], "unknown key dta; did you mean data?"),
        (["--limit", "3"], "nothing to check: give --data PATH"),
        (["--data", "nowhere"], "--data nowhere: no such file or folder"),
        (["--data"], "--data needs a value"),
        (["--data", "{kind: folder, path: nowhere}"], "data folder 'nowhere' does not exist"),
        (["--data", "shapes", "--max-brken", "1"], "did you mean max_broken"),
        (["--data", "shapes", "--text", "nowhere", "--limit", "3"], "nowhere"),
        (["--config", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("option", ["--image", "--report"])
def test_what_cannot_be_written_is_refused_before_anything_is_read(
    data: Path, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    for target, cause in (
        ("file/x.png", "file' is a file, not a folder"),
        ("file/deep/x.png", "file' is a file, not a folder"),
        ("folder", "it is a folder"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(main.__globals__, "check", None)
            assert run(data, option, target) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: {option[2:]}: {target!r} cannot be written: ")
        assert printed.err.endswith(f"{cause}; choose another {option}\n")
    if option == "--image":
        assert run(data, option, "sheet.psng") == 2
        assert "no known format; choose a name that ends with .png" in capsys.readouterr().err
    assert run(data, option, "new/deep/x.png") == 0
    assert Path("new/deep/x.png").is_file()


@pytest.mark.parametrize("option", ["--image", "--report"])
def test_a_failed_write_does_not_cost_the_result(
    data: Path, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Image.Image, "save") if option == "--image" else (Path, "write_text")), full)
    assert run(data, option, "x.png") == 2
    printed = capsys.readouterr()
    assert "no problems found" in printed.out
    assert printed.err == f"error: cannot write x.png: No space left on device; mend that, or choose another {option}\n"


def test_what_is_not_used_is_told_and_a_problem_where_it_may_be_data(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train" / "notes.py").write_text("")
    assert run(data) == 0, "told only"
    assert "\nnot used: 1 files ending in .py (train/notes.py): " in capsys.readouterr().out
    for name in ("a", "b"):
        (data / "train" / f"{name}.heic").write_text("")
    code, found = report(data)
    assert code == 1
    assert found["problems"] == [
        "not used although it may be meant to be: 2 of 12 things (files ending in .heic; allowed 0.00%): do as the "
        "lines 'not used' say, or allow them with --max-unused"
    ]
    assert [(unused["count"], unused["what"], unused["lost"]) for unused in found["unused"]] == [
        (2, "files ending in .heic", True),
        (1, "files ending in .py", False),
    ]
    assert found["unused"][0]["examples"] == ["train/a.heic", "train/b.heic"]
    assert run(data, "--max-unused", "0.17") == 0
    assert run(data, "--max-unused", "0.16") == 1


def test_what_a_shard_lost_is_counted_once(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        path = write_shard(tmp_path / folder / "a.tar", shades(range(20)))
        path.write_bytes(path.read_bytes()[: 12 * 2048 + 700])
    source = {"kind": "shards", "path": str(tmp_path / "*/a.tar"), "streaming": True, "val_fraction": 0.4}
    (tmp_path / "run.yaml").write_text(
        json.dumps({"objective": "image_tokenizer", "data": {"source": source, "transform": {"image_size": 4}}})
    )

    def lost() -> list[list[str]]:
        findings = check_module.check(load_settings(["--config", str(tmp_path / "run.yaml")]))
        return [[item.name for item in found.broken] for found in findings.splits.values()]

    assert lost() == [["a.tar after sample 12"] * 2, []]
    source |= {"path": str(tmp_path / "one/a.tar"), "val_paths": [str(tmp_path / "two/a.tar")]}
    (tmp_path / "run.yaml").write_text(
        json.dumps({"objective": "image_tokenizer", "data": {"source": source, "transform": {"image_size": 4}}})
    )
    assert lost() == [["a.tar after sample 12"]] * 2, "two shards, though of one name"


def test_causes_that_differ_in_a_path_alone_are_one_line() -> None:
    def told(*names: str) -> str:
        broken = [UnusableSample(f"row {name}", f"the file is missing: '/a/{name}.png'") for name in names]
        found = SplitReport(len(names), len(names), broken=[*broken, UnusableSample("row x", "no image")])
        return report_text(DataReport(CheckConfig(), {"train": found}))

    lines = "  2 x the file is missing: ...\n      train row 1, train row 2\n  1 x no image\n      train row x"
    assert lines in told("1", "2")
    assert "  1 x the file is missing: '/a/1.png'\n      train row 1\n" in told("1")


@pytest.mark.parametrize(
    "path",
    # The configs of accelerate beside them are no runs.
    sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parts[-2] != "accelerate"),
    ids=lambda path: path.stem,
)
def test_every_shipped_config_can_be_checked(path: Path) -> None:
    config = load_settings(["--config", str(path)])
    assert config.require_captions == (path.parts[-2] not in ("vqgan", "upsampler", "mim"))
    if path.stem.startswith("fused_synthesis"):
        assert config.text.kind in ("bpe", "pretrained")


def test_a_mistake_in_the_data_of_a_config_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("objective: next_token\nimage_tokenizer: x\ntext: {length: 7}\ndata: {batch_sise: 3}\n")
    with pytest.raises(ValueError, match=r"unknown key data\.batch_sise; did you mean data\.batch_size\?"):
        load_settings(["--config", str(path)])
    head = "objective: next_token\nimage_tokenizer: x\n"
    path.write_text(f"{head}text: {{length: 7}}\ndata: {{batch_size: 3}}\nseed: 5\nloop: {{steps: 3}}\n")
    config = load_settings(["--config", str(path), "--data.workers", "2", "--max-cut=0.5"])
    assert (config.data.batch_size, config.data.workers, config.seed, config.max_cut) == (3, 2, 5, 0.5)
    assert getattr(config.text, "length", None) == 7
    path.write_text("objective: next_token\nimage_tokenizer: x\ndata: {codes: null, batch_size: 3}\n")
    assert load_settings(["--config", str(path)]).data.batch_size == 3
    path.write_text("objective: next_token\nimage_tokenizer: x\ndata: {codes: nowhere}\n")
    with pytest.raises(DataError, match="nowhere"):
        load_settings(["--config", str(path)])


def test_shortcuts_for_what_is_not_a_folder_of_images(tmp_path: Path) -> None:
    def source(name: str) -> dict[str, Any]:
        return load_settings(["--data", name]).data.source.model_dump(mode="json")

    (tmp_path / "a.parquet").touch()
    assert source("shapes")["kind"] == "shapes"
    assert source(str(tmp_path / "a.parquet"))["kind"] == "dataset"
    assert source(str(tmp_path))["kind"] == "dataset"
    assert source("https://example.org/{000..123}.tar")["kind"] == "shards"
    (tmp_path / "b.png").touch()
    assert source(str(tmp_path))["kind"] == "folder"
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    assert source(str(tmp_path / "shards")) | {"path": ""} == source("a.tar") | {"path": ""}
    assert source("{kind: mixture, sources: [{source: {kind: shapes}}]}")["kind"] == "mixture"


def test_the_options_of_a_training_command_are_taken_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 20), (number * 20, 9, 9)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(
            f"number {number} with a caption that is much longer than sixteen tokens are"
        )
    config = str(Path(__file__).parents[2] / "configs/parti/shapes.yaml")
    words = ["--config", config, "--run_dir", "runs/mine", "--image_tokenizer", "runs/other", "--loop.steps=30"]
    words += [
        "--data.source",
        f"{{kind: folder, path: {folder}}}",
        "--data.batch_size",
        "4",
        "--text.vocab_size",
        "260",
        "--model.width",
        "64",
    ]
    image = ["--image", str(tmp_path / "batch.png")]
    assert main([*words, *image]) == 1
    out = capsys.readouterr().out
    assert "the limit is 16" in out
    assert "longer than 16 tokens" in " ".join(out.split())
    assert main([*words, *image, "--text.length", "120"]) == 0
    assert "the limit is 120" in capsys.readouterr().out
    assert main([*words[:-2], "--model.widht", "64"]) == 2
    assert "did you mean model.width?" in capsys.readouterr().err
    other = ["--config", config, "--data", str(folder), "--data.source.val_fraction", "0.4", "--data.batch_size", "4"]
    other += [*image, "--loop.steps", "3"]
    assert main([*other, "--text.vocab_size", "260"]) == 1
    assert capsys.readouterr().out.split("items")[1].split()[:2] == ["5", "7"], "7 of the 12 names score below 0.4"
    assert main(other) == 0, "the config's vocabulary of 400 learns their words as wholes, so that none is cut"
