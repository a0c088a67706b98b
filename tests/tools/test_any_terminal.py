"""No tool ends with a UnicodeEncodeError: what a terminal cannot show is written as an escape."""

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vqgan.cli.console import command
from vqgan.training.monitor.progress import Progress

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))
ENCODINGS = ["ascii", "cp1252", "utf-8"]
NAME = "\u00fc-\u732b-\udcff"
"""A letter of Latin-1, one of no 8-bit encoding, and a byte of a file name that is not text."""
ESCAPED = {"ascii": r"\xfc-\u732b-\udcff", "cp1252": r"ü-\u732b-\udcff", "utf-8": r"ü-猫-\udcff"}


def main_of(tool: Path) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(f"any_terminal_{tool.stem}", tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


class Terminal:
    """Standard output and standard error of one encoding, strict as Python opens them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self._bytes = io.BytesIO()
        self._encoding = encoding
        self._streams = [io.TextIOWrapper(self._bytes, encoding=encoding, write_through=True) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", self._streams[0])
        monkeypatch.setattr(sys, "stderr", self._streams[1])

    def text(self) -> str:
        return self._bytes.getvalue().decode(self._encoding)


def test_there_are_tools() -> None:
    assert {"check_data", "sample", "evaluate", "plan", "train_parti"} <= {tool.stem for tool in TOOLS}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.stem)
def test_every_tool_tells_what_is_wrong(tool: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main = main_of(tool)
    with monkeypatch.context() as patched:
        terminal = Terminal(patched, encoding)
        try:
            code = main([f"--{NAME}"])
        except SystemExit as leaving:  # argparse's own way
            code = int(str(leaving.code))
        text = terminal.text()
    assert code == 2
    assert ESCAPED[encoding] in text or "error" in text


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.stem)
def test_every_tool_shows_its_help(tool: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main = main_of(tool)
    with monkeypatch.context() as patched:
        terminal = Terminal(patched, encoding)
        try:
            code = main(["--help"])
        except SystemExit as leaving:
            code = int(str(leaving.code))
        assert code == 0
        assert "--" in terminal.text()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_report_that_names_files_and_captions(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 20), (number * 20, 9, 9)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"eine \u732b mit \u00fc, {number}", encoding="utf-8")
    (folder / "\u00fc-\u732b.png").write_bytes(b"no image")
    (folder / "\u00fc-\u732b.txt").write_text("x", encoding="utf-8")
    main = main_of(next(tool for tool in TOOLS if tool.stem == "check_data"))
    words = ["--data", str(folder), "--image", str(tmp_path / "batch.png"), "--data.batch_size", "2"]
    with monkeypatch.context() as patched:
        terminal = Terminal(patched, encoding)
        code = main([*words, "--data.transform.image_size", "16"])
        text = terminal.text()
    assert code == 1, text
    assert ESCAPED[encoding].removesuffix(r"-\udcff") in text
    assert "broken" in text


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lines_and_bars_of_a_run(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @command
    def main(argv: list[str]) -> int:
        progress = Progress("stage 1", 0, 3, visible=True)
        progress.advance()
        progress.say(f"skipped {argv[0]}")
        progress.close()
        return 0

    with monkeypatch.context() as patched:
        terminal = Terminal(patched, encoding)
        patched.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        patched.setattr("vqgan.training.monitor.progress._has_room", lambda: True)
        assert main([NAME]) == 0
        assert f"skipped {ESCAPED[encoding]}" in terminal.text()
