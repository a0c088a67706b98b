"""The head comment of every shipped config says what it has to, and its commands are accepted."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PATHS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "accelerate")
RESULT = re.compile(r"(never|not) run\s+here|\d(%| ?dB| of \d+)|Time and metrics: see docs/results\.md", re.IGNORECASE)
"""What was measured, where it stands, or that nothing was."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def head(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[2:] for line in lines[:end])


def training_commands(path: Path) -> list[list[str]]:
    """Tool and options of the head's commands that train by this config."""
    joined = re.sub(r"\\\n\s*", " ", head(path))
    started = re.findall(r"^  accelerate launch (.*)$", joined, re.MULTILINE)
    words = [shlex.split(command) for command in started]
    tools = [command[next(place for place, word in enumerate(command) if word.endswith(".py")) :] for command in words]
    return [command for command in tools if name(path) in command]


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_it_says_command_hardware_and_what_to_expect(path: Path) -> None:
    text = head(path)
    assert training_commands(path), f"a line '#   accelerate launch tools/... --config {name(path)}' is missing"
    assert "Hardware: " in text, "say the hardware and the time, behind 'Hardware: '"
    assert RESULT.search(text), "say the expected metric, or 'Never run here'"
    if "see docs/results.md" in text:
        assert path.stem in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_its_commands_are_accepted(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for tool, *options in training_commands(path):
        main = importlib.import_module(tool.removesuffix(".py").replace("/", ".")).main
        assert main([*options, "--print-config"]) == 0, capsys.readouterr().err
        assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == yaml.safe_load(path.read_text())["run_dir"]
