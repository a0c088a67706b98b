"""The README is true: its tree is the repository, its commands exist and take the options it shows."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [body for name, body in fences if name == language]


def tree() -> Iterator[tuple[str, str]]:
    """(path, remark) of every line of the annotated tree."""
    (block,) = [block for block in blocks("") if block.startswith("parti-toolkit/")]
    folders: list[str] = []
    for line in block.splitlines()[1:]:
        match = re.fullmatch(r"((?:│   |    )*)[├└]── (\S+)\s+(.*)", line)
        assert match, line
        del folders[len(match[1]) // 4 :]
        yield "/".join([*folders, match[2].rstrip("/")]), match[3]
        folders.append(match[2].rstrip("/"))


def commands() -> list[list[str]]:
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def test_every_line_of_the_tree_exists_and_names_what_is_in_it() -> None:
    for path, remark in tree():
        assert (ROOT / path).exists(), path
        if (ROOT / path).is_dir() and "·" in remark:
            inside = {file.stem for file in (ROOT / path).iterdir() if file.suffix in (".py", ".yaml")} - {"__init__"}
            assert {name.strip() for name in remark.split("·")} == inside, path


def test_the_tree_leaves_out_no_module() -> None:
    shown = {path for path, _ in tree()}
    for package in ("vqgan", "parti", "tools"):
        for path in (ROOT / package).iterdir():
            if path.suffix == ".py" and path.stem != "__init__":
                assert f"{package}/{path.name}" in shown
            if path.is_dir() and (path / "__init__.py").exists():
                assert f"{package}/{path.name}" in shown


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_are_accepted(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in command if word not in ("accelerate", "launch", "python", ".venv/bin/python")]
    if words[0] == "make":
        return
    if words[0] == "--config_file":  # the launcher's own
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    tool = ROOT / words[0]
    assert tool.is_file(), words[0]
    namespace: dict[str, object] = {"__name__": "readme", "__file__": str(tool)}
    exec(compile(tool.read_text(encoding="utf-8"), str(tool), "exec"), namespace)
    main = namespace["main"]
    assert callable(main)
    if tool.name in ("train_vqgan.py", "train_parti.py"):
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
        assert main([*words[1:], "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["run_dir"]
    else:
        with suppress(SystemExit):  # argparse's own way to leave
            assert main(["--help"]) == 0
        options = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", capsys.readouterr().out))
        groups = {
            ".".join(option.split(".")[:depth]) for option in options for depth in range(1, option.count(".") + 1)
        }
        assert {word.partition("=")[0] for word in words[1:] if word.startswith("--")} <= options | groups


def test_figures_of_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
