"""No text from outside steers a terminal: names, captions, cells, words and prompts come out as escapes everywhere.

To add a way into a command is a line in WAYS.
"""

import contextlib
import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.tools.test_any_terminal import TOOLS, main_of
from vqgan.cli.command_line import print_error, print_out
from vqgan.config.schema import ConfigError
from vqgan.data.source import UnusableSample, printable
from vqgan.training.monitor.progress import Progress

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x1b[1A\r\u202eb\x9b31m\x7f\u2028\u2066c"
"""A new title, a cleared screen, a line upwards, a line written over, text from right to left, red."""
SHOWN = r"\x1b[2J"


def steering(text: str) -> set[str]:
    """The characters of a text that do something other than stand there; a line feed and a tabulator may."""
    return {character for character in text if printable(character) != character} - set("\n\t")


def said(tool: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with contextlib.suppress(SystemExit):  # argparse's own way
        main_of(tool)(words)
    told = capsys.readouterr()
    return told.out + told.err


WAYS: dict[str, list[str]] = {
    "an option": [f"--{HOSTILE}"],
    "an option with a value": [f"--{HOSTILE}", HOSTILE],
    "a value": ["--model", HOSTILE, "--prompt", HOSTILE, "--out", HOSTILE],
    "a run": ["--run", HOSTILE],
    "a config": ["--config", f"{HOSTILE}.yaml"],
    "data": ["--data", f"/nowhere/{HOSTILE}"],
    "a word": [HOSTILE],
    "a nested option": [f"--data.{HOSTILE}", "1"],
    "a kind": ["--data.source.kind", HOSTILE],
    "a checkpoint": ["--checkpoint", HOSTILE, "--out", HOSTILE, "--format", "taming"],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.stem)
def test_what_is_typed_or_pasted(
    tool: Path, way: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if tool.stem == "demo" and way in ("a value", "a run", "a word", "a checkpoint", "data"):
        pytest.skip("it begins a training, which is no matter of words")
    text = said(tool, WAYS[way], capsys)
    assert not steering(text), text


def image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    return path


NAME = HOSTILE.replace("/", "")


def in_folder(place: Path) -> str:
    for number in range(8):
        image(place / f"{number}{NAME}.png", number % 6).with_suffix(".txt").write_text(f"{number} {HOSTILE}")
    (place / f"broken{NAME}.png").write_bytes(b"?")
    (place / f"unused{NAME}.heic{NAME}").write_bytes(b"?")
    (place / f"notes{NAME}.doc").write_bytes(b"?")
    return str(place)


def in_metadata(place: Path) -> str:
    rows = [{"file_name": image(place / f"{n}.png", n).name, "text": f"{n} {HOSTILE}"} for n in range(8)]
    rows += [{"file_name": f"gone{HOSTILE}.png", "text": HOSTILE}, {"file_name": f"../{HOSTILE}", "text": HOSTILE}]
    lines = [json.dumps(row) for row in rows]
    (place / "metadata.jsonl").write_text("\n".join(lines))
    return str(place)


def in_cells(place: Path) -> str:
    for number in range(8):
        image(place / f"{number}.png", number)
    with (place / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", HOSTILE])
        writer.writerows([f"{number}.png", HOSTILE, HOSTILE] for number in range(8))
        writer.writerow([f"gone{HOSTILE}.png", HOSTILE, HOSTILE])
    return str(place)


def in_wrong_columns(place: Path) -> str:
    image(place / "1.png", 1)
    (place / "metadata.csv").write_text(f"{HOSTILE},b\n1.png,x\n".replace("\r", ""))
    return str(place)


def in_tar(place: Path) -> str:
    place.mkdir()
    with tarfile.open(place / f"a{NAME}.tar", "w") as file:
        for number in range(9):
            content = image(place / "one.png", number % 6).read_bytes() if number < 8 else b"?"
            for ending, data in (("png", content), ("txt", HOSTILE.encode())):
                info = tarfile.TarInfo(f"{number}{NAME}.{ending}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        file.addfile(tarfile.TarInfo(f"no ending{NAME}".replace(".", "")))
    return str(place / f"a{NAME}.tar")


def in_rows(place: Path) -> str:
    datasets.disable_progress_bars()  # they write over their own line
    image(place / "1.png", 1)
    rows = [{"image": f"gone{HOSTILE}.png" if n else "1.png", "text": HOSTILE, HOSTILE: 1} for n in range(8)]
    (place / f"rows{NAME}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(place / f"rows{NAME}.jsonl")


@pytest.mark.parametrize("hidden", [in_folder, in_metadata, in_cells, in_wrong_columns, in_tar, in_rows])
def test_what_a_data_set_holds(
    hidden: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (check,) = (tool for tool in TOOLS if tool.stem == "check_data")
    words = ["--data", hidden(tmp_path / "set"), "--data.transform.image_size", "8", "--data.batch_size", "2"]
    text = said(check, [*words, "--require-captions", "true", "--report", "report.json"], capsys)
    assert not steering(text), text
    assert SHOWN in text


def test_every_sink_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    print_out(HOSTILE)
    print_error(ConfigError(f"{HOSTILE}\nerror: forged"))
    progress = Progress("title", 0, 10, True)
    progress.say(HOSTILE)
    progress.close()
    told = capsys.readouterr()
    assert not steering(told.out + told.err)
    assert told.out.count("\n") == 1
    assert f"error: {printable(HOSTILE)}\\nerror: forged\n" in told.err
    assert not steering(str(UnusableSample(HOSTILE, HOSTILE)))


def test_text_of_every_script_stays() -> None:
    for text in ("añ", "日本語", "हिन्दी", "עברית", "العربية", "👩\u200d👩\u200d👧", "e\u0301", "\u00a0", "→"):
        assert printable(text) == text
    assert printable("a\nb\tc\x00\x1b\x85\u202e\udcff") == r"a\nb\tc\x00\x1b\x85\u202e\udcff"
