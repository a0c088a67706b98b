"""How words of the command line and YAML files become values: text as it is given, and nothing that no config holds."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.vqgan.config.test_schema import FolderConfig, RunConfig, file, mistake
from vqgan.cli.command_line import print_error
from vqgan.config.option_values import read_word
from vqgan.config.schema import Config, ConfigError, dump_config, load_config, read_yaml

__all__ = ["file"]

WORDS = ("exp #2", "&cats", "*x", "!t", "a: b", "[x", "{a}", "yes", "010", "1e5", "", " x ", "~", "'q'", "a\nb", "%")
"""Text that YAML would make something else of, or nothing."""
LAUGHS = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9))
MERGED_LAUGHS = "".join(
    f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 9) if n else ''}], a{n}: 1}}\n" for n in range(12)
)
"""Documents of some 300 characters that grow ninefold with each line."""


@pytest.mark.parametrize("text", WORDS)
def test_text_is_taken_as_it_is_given(file: Path, text: str) -> None:
    assert load_config(RunConfig, file, ["--name", text]).name == text
    assert load_config(RunConfig, file, [f"--name={text}"]).name == text
    config = load_config(RunConfig, file, ["--data.kind", "folder", "--data.path", text])
    assert isinstance(config.data, FolderConfig)
    assert str(config.data.path) == str(Path(text))
    printed = file.with_name("printed.yaml")
    printed.write_text(dump_config(config))
    assert load_config(RunConfig, printed) == config


@pytest.mark.parametrize(
    ("annotation", "word", "value"),
    [
        (str | None, "null", None),
        (str | None, "none", "none"),
        (str, "null", "null"),
        (Path | None, "a #2", "a #2"),
        (Literal["on", "off"], "on", "on"),
        (int | str, "12", 12),
        (int | str, "12%", "12%"),
        (Literal[2, 4], "2", 2),
        (tuple[str, ...], "[a, 'b #2']", ["a", "b #2"]),
        (dict[str, Any] | None, "{a: '#'}", {"a": "#"}),
        (bool, "true", True),
    ],
)
def test_the_type_of_a_field_says_how_a_word_is_read(annotation: Any, word: str, value: object) -> None:
    assert read_word(word, [annotation]) == value
    assert type(read_word(word, [annotation])) is type(value)


def test_dashes_in_names_are_underscores(file: Path) -> None:
    class Dashed(Config):
        run_dir: str = "x"
        """Folder."""

    assert load_config(Dashed, None, ["--run-dir", "exp #2"]).run_dir == "exp #2"
    assert load_config(Dashed, None, ["--run_dir=a-b"]).run_dir == "a-b"
    assert mistake(file, "--nme-x", "x").startswith("unknown key nme_x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 10000 values"),
        (MERGED_LAUGHS, "too many keys are merged"),
        ("a: [" + "x, " * 60_000 + "]", "more than 10000 values"),
        ("a: &a [*a]", "nested too deeply, or holds itself"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "9" * 400, "a whole number of some 40. digits is too large"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: !!timestamp 2024-01-01", "a date is no value of a config"),
        ("a: !!binary aGk=", "a bytes is no value of a config"),
        ("a: !!set {x, y}", "a set is no value of a config"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!int abc", "not valid YAML"),
        ("{1: 2}", "the key '1' is a int, keys are words"),
        ("{[1, 2]: 3}", "a key is not a word"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_yaml_that_no_config_holds(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(file)
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_config_is_a_regular_file_of_bounded_size(file: Path) -> None:
    os.mkfifo(file.with_name("pipe.yaml"))
    file.write_text("#" * (2 << 20))
    for path, message in (("/dev/zero", "not a regular file"), (file, "it has 2,097,152 bytes, the limit is"),
                          (file.with_name("pipe.yaml"), "not a regular file")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            read_yaml(path)


def test_an_error_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(ConfigError("unknown key \x1b[31mred\n\u202e"))
    assert capsys.readouterr().err == "error: unknown key \\x1b[31mred\\n\\u202e\n"
