"""Random wrong values on random keys of every shipped config: one line or a valid config, and nothing else.

The same examples in every run (`derandomize`): a failure is of the change that brought it.
"""

import contextlib
import io
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parti.objectives import choose_objective
from vqgan.cli.command_line import print_error, run_training
from vqgan.config.options import split_options
from vqgan.config.schema import Config, ConfigError, describe_fields, dump_config, load_config
from vqgan.data.source import printable

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(file for file in ROOT.rglob("*.yaml") if file.parent.name != "accelerate")
NUMBERS = ["0", "-1", "1", "3", "17", "1e9", "1e-9", "1e400", "-.inf", ".nan", "1_000", "0x10", "010", "1:30", "-0"]
LARGE = ["2147483648", "1000000000000", "9223372036854775807", "1" + "0" * 22, "9" * 400, "9" * 5000]
WORDS = ["null", "~", "true", "on", "", "''", "a", "é", "💥", "\u202e", "a" * 10_000]
ESCAPES = ['"\\ud800"', '"\\0"', '"\\x1b[31mred"', "\x00", "\t", "\ufeff"]
PATHS = ["../../etc/passwd", "/dev/zero", "/dev/null", "~root", "http://127.0.0.1:1/", "file:///etc/passwd", "C:\\x"]
NESTED = [
    "[]",
    "{}",
    "[1]",
    "[[1]]",
    "{a: 1}",
    "{kind: x}",
    "{kind: 1}",
    "{kind: null}",
    "{kind: [1]}",
    "{kind: {a: b}}",
]
NESTED += ["{1: 2}", "{null: 1}", "{[1, 2]: 3}", "{? {a: b} : c}", "[" * 200 + "]" * 200, "[" * 10_000]
TAGS = ["!!timestamp 2024-01-01", "!!timestamp x", "!!binary aGk=", "!!binary //79", "!!set {a, b}", "!!omap [a: 1]"]
TAGS += ["!!pairs [a: 1]", "!!int abc", "!!int ''", "!!float abc", "!!bool maybe", "!!null x", "!!map [1]", "!foo bar"]
TAGS += ["!!seq {a: 1}", "!!python/object/apply:os.system [id]"]
ODD = ["&a [*a]", "&a {b: *a}", "*undefined", "<<", "{<<: 1}", "{<<: {steps: 1}}", "{<<: [1]}", "|\n  more\n  lines"]
ODD += [*"-%@`'\"{}[]#", "--", ": ", "x #y", "? ", "- a", "#fff", "rgba(0,0,0,0)", "hsl(1e999,1%,1%)", "%s%n"]
VALUES = st.one_of(
    st.sampled_from([*NUMBERS, *LARGE, *WORDS, *PATHS, *NESTED, *TAGS, *ODD, *ESCAPES]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.lists(st.integers(-3, 9), max_size=3).map(str),
)


def type_of(file: Path) -> type[Config]:
    return choose_objective(file).config_type


@cache
def keys_of(config_type: type[Config]) -> list[str]:
    return sorted({field.name for field in describe_fields(config_type)})


SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(file: Path, words: list[str], printed: Path) -> None:
    """Assert what a run's command gives of these words."""
    out, err, start = io.StringIO(), io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        argv = ["--config", str(file), *words, "--print-config"]
        try:
            objective = {option.name: option.word for option in split_options(words)}.get("objective")
            config_type = choose_objective(file, objective).config_type
            code = run_training(argv, config_type, lambda _: True, "")
        except ConfigError as error:
            print_error(error)
            code = 2
    assert time.process_time() - start < 20
    said = err.getvalue()
    if code == 2:
        assert said.startswith("error: ")
        assert said.endswith("\n")
        assert printable(said[:-1]) == said[:-1]
        assert len(said) < 1200
        return
    assert code == 0
    assert said == ""
    printed.write_text(out.getvalue(), encoding="utf-8")
    assert dump_config(load_config(config_type, printed)).rstrip() == out.getvalue().rstrip()


@SETTINGS
@given(file=st.sampled_from(FILES), data=st.data())
def test_a_wrong_option_is_one_line_or_a_valid_config(file: Path, data: st.DataObject, tmp_path: Path) -> None:
    words: list[str] = []
    for _ in range(data.draw(st.sampled_from([1, 1, 2]))):
        name = data.draw(st.sampled_from(keys_of(type_of(file))))
        name = data.draw(
            st.sampled_from([name] * 8 + [f"{name}.x", name[:-1], name.rpartition(".")[0] or "seed", "a..b"])
        )
        words.append(f"--{name}={data.draw(VALUES)}")
    outcome(file, words, tmp_path / f"{file.parent.name}-printed.yaml")


@SETTINGS
@given(file=st.sampled_from(FILES), data=st.data())
def test_a_damaged_file_is_one_line_or_a_valid_config(file: Path, data: st.DataObject, tmp_path: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    match data.draw(st.sampled_from(["value", "value", "cut", "mark", "line"])):
        case "value":
            lines[at] = f"{lines[at].partition(':')[0]}: {data.draw(VALUES)}"
        case "cut":
            del lines[at]
        case "mark":
            place = data.draw(st.integers(0, len(lines[at])))
            mark = data.draw(st.sampled_from("\t\x00\x1b\ufeff\u2028{}[]:,&*!|>%@`'\"#-?"))
            lines[at] = lines[at][:place] + mark + lines[at][place:]
        case _:
            lines.insert(at, data.draw(VALUES))
    damaged = tmp_path / f"{file.parent.name}.yaml"
    damaged.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    outcome(damaged, [], tmp_path / f"{file.parent.name}-printed.yaml")


@pytest.mark.parametrize("value", LARGE + TAGS + NESTED)
def test_every_kind_of_value_is_met(value: str, tmp_path: Path) -> None:
    file = ROOT / "parti" / "shapes.yaml"
    keys = keys_of(type_of(file))
    for name in keys[len(value) % 19 :: len(keys) // 4]:
        outcome(file, [f"--{name}={value}"], tmp_path / "parti-printed.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_key_stands_values_beyond_its_type(file: Path, tmp_path: Path) -> None:
    for name in keys_of(type_of(file)):
        for value in (*LARGE[:4], "-1", "null", "[]", "{}", "x", "1e400"):
            outcome(file, [f"--{name}={value}"], tmp_path / f"{file.parent.name}-printed.yaml")


def leaves(node: Any) -> int:
    return sum(map(leaves, node.values())) if isinstance(node, dict) else 1


def test_there_is_something_to_change() -> None:
    assert len(FILES) > 20
    assert all(leaves(yaml.safe_load(file.read_text(encoding="utf-8"))) > 3 for file in FILES)
