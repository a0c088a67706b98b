"""README and docs are true: commands exist and take the options shown, citations resolve (links: tests/docs)."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("guide", "fused", "weights"))]
"""What a new user reads from front to back: the commands of each may build on those before."""


def blocks(language: str) -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in fences if name == language]


def commands() -> list[list[str]]:
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def test_the_tree_is_the_repository() -> None:
    page = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(ROOT / "docs" / "make_tree.py"))["tree"](), "run python docs/make_tree.py"


def test_places_that_the_tree_names_exist() -> None:
    for place in runpy.run_path(str(ROOT / "docs" / "make_tree.py"))["WHERE"].values():
        file, _, name = place.partition(": ")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names |= {ast.unparse(node.target) for node in tree.body if isinstance(node, ast.AnnAssign)}
        names |= {ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)}
        assert name in names, place


def test_every_module_says_what_it_is() -> None:
    for package in ("vqgan", "parti", "tools", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_every_cited_section_exists() -> None:
    sections = set(re.findall(r"^#+ ([0-9A-H](?:\.\d)?)", (ROOT / "docs" / "papers.md").read_text(), re.MULTILINE))
    cited = set()
    for folder in ("vqgan", "parti", "tools", "configs", "tests", "benchmarks"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]:
            text = path.read_text(encoding="utf-8")
            cited |= set(re.findall(r"papers\.md (?:section )?([0-9A-H](?:\.\d)?)\b", text))
            assert path == Path(__file__) or not re.search(r"\bSPEC [0-9A-H]", text), path
    assert cited
    assert cited <= sections


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("bash")), re.MULTILINE))
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
        first = [word for word in words[1:2] if not word.startswith("-")]
        assert main([*first, "--help"]) == 0
        options = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", capsys.readouterr().out))
        groups = {
            ".".join(option.split(".")[:depth]) for option in options for depth in range(1, option.count(".") + 1)
        }
        given = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert {f"--{word[2:].replace('-', '_')}" for word in given} <= options | groups | {"--print_config"}


MADE_BY_DEMO = {"out/demo/vqgan", "out/demo/parti"}
READS = ("--model", "--image_tokenizer", "--tokenizer", "--upsample", "--reranker", "--data.codes", "--codes_from")
"""Options whose value is a folder that another command makes."""
OF_A_CONFIG = ("image_tokenizer", "tokenizer", "codes_from")


def value_of(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_no_command_names_a_run_that_none_before_it_makes() -> None:
    """In the order of the pages, after `make demo`; images, prompts and downloaded weights are the reader's own."""
    made: set[str] = set()
    for words in commands():
        if words[:2] == ["make", "demo"]:
            made |= MADE_BY_DEMO
        config = {}
        if "tools/" in " ".join(words) and (path := value_of(words, "--config")) is not None and "configs/" in path:
            config = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
        reads = {option: value_of(words, option) for option in READS}
        is_training = any("tools/train_" in word for word in words)
        if is_training and reads["--data.codes"] is None:
            reads |= {name: config.get(name) for name in OF_A_CONFIG if f"--{name}" not in words}
        for option, folder in reads.items():
            if folder is not None:
                assert folder in made, f"{' '.join(words)}: {option} {folder} is made by no command before it"
        if is_training:
            made.add(value_of(words, "--run_dir") or config["run_dir"])
        elif words[-1] != "--help" and (out := value_of(words, "--out")) is not None:
            made.add(out)


def test_extras_are_quoted_for_shells_that_take_brackets_for_a_pattern() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*/*.yaml")]
    files += [path for package in ("vqgan", "parti", "tools") for path in (ROOT / package).rglob("*.py")]
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            for word in re.findall(r"(?:pip install|--trackers\.names)(?: -[-\w]+)* (\S+\[\S+|\[\S+)", line):
                assert word[0] in "\"'", f"{path.relative_to(ROOT)}: {line.strip()}"


def test_what_the_commands_write_is_not_for_git() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    for words in commands():
        for option in ("--out", "--run_dir"):
            if (folder := value_of(words, option)) is not None and "/" in folder:
                assert f"/{folder.split('/')[0]}/" in ignored, folder
