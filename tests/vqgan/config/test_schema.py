"""Every mistake in a configuration is one line that names the place and the nearest valid name."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, model_validator

from vqgan.config.options import read_options, split_options
from vqgan.config.schema import (
    Config,
    ConfigError,
    describe_fields,
    dump_config,
    format_help,
    load_config,
    read_yaml,
    validate,
)


class GeneratedConfig(Config):
    """Drawn images."""

    kind: Literal["drawn"] = "drawn"
    """Images that need no files."""
    seed: int = 0
    """Which images."""


class FolderConfig(Config):
    """Images in files."""

    kind: Literal["folder"] = "folder"
    """Images from a folder."""
    path: Path
    """The folder."""
    crop: Literal["central", "random"] = "central"
    """Which part of an image is kept."""


class AttentionConfig(Config):
    """Attention."""

    heads: int = 8
    """Number of heads."""
    dropout: float = 0.0
    """Share of weights dropped."""


class ViTConfig(Config):
    """A transformer."""

    kind: Literal["vit"] = "vit"
    """Patches and attention."""
    depth: int = Field(12, gt=0)
    """Number of blocks."""
    width: int = 512
    """Channels of the residual stream."""
    attention: AttentionConfig = AttentionConfig(heads=4)
    """The attention of every block."""


class CNNConfig(Config):
    """A convolutional network."""

    kind: Literal["cnn"] = "cnn"
    """Convolutions."""
    channels: int = 128
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Channels of each level, as multiples."""


class OptimizerConfig(Config):
    """How weights move."""

    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of Adam's two averages."""
    warmup: int | float = 0.1
    """Steps, or share of all steps."""

    @model_validator(mode="after")
    def check(self) -> "OptimizerConfig":
        if self.betas[0] > self.betas[1]:
            raise ValueError(f"betas must rise, received {self.betas}")
        return self


class EMAConfig(Config):
    """Averaged weights."""

    decay: float = 0.999
    """Weight of the past."""


Data = Annotated[GeneratedConfig | FolderConfig, Field(discriminator="kind")]
Model = Annotated[ViTConfig | CNNConfig, Field(discriminator="kind")]


class RunConfig(Config):
    """One training run."""

    name: str
    """What the run is called."""
    data: Data
    """What is learned from."""
    model: Model = ViTConfig(depth=4, width=256)
    """The network."""
    optimization: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    ema: EMAConfig | None = None
    """Averaged weights; null for none."""
    note: str = ""
    """Anything."""


GOOD = """
name: test
data: {kind: folder, path: images}
model: {kind: cnn, channels: 64}
optimization: {lr: 1e-3, betas: [0.9, 0.95]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    return path


def mistake(file: Path, *overrides: str, text: str | None = None) -> str:
    """The error's one line, after the file's name."""
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{file} with command line options: ").removeprefix(f"{file}: ")


def test_a_file_gives_a_typed_frozen_object(file: Path) -> None:
    config = load_config(RunConfig, file)
    assert config == RunConfig(
        name="test",
        data=FolderConfig(path=Path("images")),
        model=CNNConfig(channels=64),
        optimization=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95)),
    )
    assert isinstance(config.optimization.lr, float)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_no_file_means_defaults_and_overrides() -> None:
    assert load_config(RunConfig, None, ["--name", "x", "--data.kind", "drawn"]) == RunConfig(
        name="x", data=GeneratedConfig()
    )


def test_overrides_win_over_the_file(file: Path) -> None:
    words = ["--optimization.lr", "5e-4", "--model.channels=32", "--note=a=b", "--optimization.betas", "[0.5, 0.6]"]
    config = load_config(RunConfig, file, words)
    assert config.optimization == OptimizerConfig(lr=5e-4, betas=(0.5, 0.6))
    assert config.model == CNNConfig(channels=32)
    assert config.note == "a=b"
    assert config.data == FolderConfig(path=Path("images"))


def test_a_section_given_in_part_is_completed_from_its_default() -> None:
    def model(*words: str) -> ViTConfig | CNNConfig:
        return load_config(RunConfig, None, ["--name", "x", "--data.kind", "drawn", *words]).model

    assert model() == ViTConfig(depth=4, width=256)
    assert model("--model.depth", "2") == ViTConfig(depth=2, width=256)
    assert model("--model.kind", "vit", "--model.depth", "2") == ViTConfig(depth=2, width=256)
    assert model("--model.attention.dropout", "0.5") == ViTConfig(
        depth=4, width=256, attention=AttentionConfig(heads=4, dropout=0.5)
    )
    assert model("--model.kind", "cnn") == CNNConfig()
    assert model("--model.kind=cnn", "--model.channels=8") == CNNConfig(channels=8)
    assert validate(ViTConfig, {"attention": {"dropout": 0.5}}, "x").attention.heads == 4


def test_an_absent_section_is_made_by_one_of_its_keys(file: Path) -> None:
    assert load_config(RunConfig, file).ema is None
    assert load_config(RunConfig, file, ["--ema.decay", "0.9"]).ema == EMAConfig(decay=0.9)
    assert load_config(RunConfig, file, ["--ema", "null", "--ema.decay", "0.9"]).ema == EMAConfig(decay=0.9)
    assert load_config(RunConfig, file, ["--ema.decay", "0.9", "--ema", "null"]).ema is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # Unknown keys.
        ("--nme x", "unknown key nme; did you mean name?"),
        ("--optimization.bets 3", "unknown key optimization.bets; did you mean optimization.betas?"),
        ("--model.chanels 3", "unknown key model.chanels; did you mean model.channels?"),
        ("--channels 3", "unknown key channels; did you mean model.channels?"),
        ("--betas 3", "unknown key betas; did you mean optimization.betas?"),
        ("--model.depth 3", "unknown key model.depth; it belongs to model.kind=vit"),
        ("--data.seed 3", "unknown key data.seed; it belongs to data.kind=drawn"),
        ("--ema.zzz 3", "unknown key ema.zzz; valid here: ema.decay"),
        # Wrong types and values.
        ("--optimization.lr fast", "optimization.lr: input should be a valid number, received 'fast'"),
        ("--optimization.lr -1", "optimization.lr: input should be greater than 0, received -1"),
        ("--model.channels 1.5", "model.channels: input should be a valid integer, received 1.5"),
        ("--model.channels true", "model.channels: input should be a valid integer, received True"),
        ("--model.multipliers [1,a]", "model.multipliers.1: input should be a valid integer, received 'a'"),
        (
            "--data.crop center",
            "data.crop: 'center' is not a choice; did you mean central? one of: 'central' or 'random'",
        ),
        ("--optimization.betas [2,1]", "optimization: betas must rise, received (2.0, 1.0)"),
        # Kinds and sections.
        ("--model.kind cnm", "model.kind: 'cnm' is not a kind; did you mean cnn? one of: vit, cnn"),
        ("--model.kind zzz", "model.kind: 'zzz' is not a kind; one of: vit, cnn"),
        (
            "--optimization 3",
            "optimization: a section is a mapping of keys (lr, betas, warmup, ...) to values, received 3",
        ),
        ("--data [a,b]", "data: a section is a mapping of keys (kind, ...) to values, received ['a', 'b']"),
        ("--data {path: x}", "data.kind is missing; one of: drawn, folder"),
        ("--data {kind: folder}", "data.path is required and has no default"),
        # What is no option.
        ("--name.first x", "--name.first: 'name' holds the value 'test', not a section"),
        ("--optimization.lr", "--optimization.lr needs a value: --optimization.lr VALUE"),
        ("--optimization.lr --name", "--optimization.lr needs a value: --optimization.lr VALUE"),
        ("lr 3", "expected an option like --section.field, received 'lr'"),
        (
            "--optimization.lr [",
            "--optimization.lr: '[' is not a YAML value: line 1: while parsing a flow node expected the node content, "
            "but found '<stream end>'",
        ),
        (
            "--optimization.lr 1 #2",
            "--optimization.lr: of '1 #2' YAML does not read '#2', a comment; put quotes around text that has a hash",
        ),
        (
            "--data {kind: folder, path: x} #2",
            "--data: of '{kind: folder, path: x} #2' YAML does not read '#2', a comment; put quotes around text that "
            "has a hash",
        ),
    ],
)
def test_mistakes_in_options(file: Path, words: str, message: str) -> None:
    option, _, value = words.partition(" ")
    received = mistake(file, option, *([value] if value else []))
    assert received.removesuffix(" (and 1 more)") == message


def test_a_union_of_plain_types_is_named_without_its_members(file: Path) -> None:
    assert mistake(file, "--optimization.warmup", "soon").startswith("optimization.warmup: input should be a valid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\n", "data is required and has no default; choose one with data.kind: drawn, folder"),
        ("data: {kind: drawn}\n", "name is required and has no default"),
        ("- a\n- b\n", "a config is a mapping of keys to values, this file holds a list"),
        ("just words\n", "a config is a mapping of keys to values, this file holds a str"),
        ("name: [\n", "not valid YAML: line 2: while parsing a flow node expected the node content, but found"),
        ("name: a\n\tdata: b\n", "not valid YAML: line 2: while scanning for the next token found character"),
        ("name: a\nname: b\n", "not valid YAML: line 1: the key 'name' is given twice"),
        (GOOD + "lr: 3\n", "unknown key lr; did you mean optimization.lr?"),
        (GOOD.replace("lr", "rl"), "unknown key optimization.rl; did you mean optimization.lr?"),
        (GOOD.replace("name", "nmae"), "unknown key nmae; did you mean name? (and 1 more)"),
        (GOOD.replace("cnn", "cn"), "model.kind: 'cn' is not a kind; did you mean cnn? one of: vit, cnn"),
    ],
)
def test_mistakes_in_the_file(file: Path, text: str, message: str) -> None:
    assert mistake(file, text=text).startswith(message)


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file .*; did you mean .*run\.yaml\?$"):
        load_config(RunConfig, file.with_name("runn.yaml"))
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory$"):
        load_config(RunConfig, "nowhere/at/all.yaml")
    with pytest.raises(ConfigError, match="cannot be read: it is a folder, not a regular file"):
        load_config(RunConfig, file.parent)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_config(RunConfig, file)


def test_the_error_says_whether_options_took_part(file: Path) -> None:
    for words, source in (([], f"{file}: "), (["--note", "x"], f"{file} with command line options: ")):
        file.write_text("name: 3")
        with pytest.raises(ConfigError) as caught:
            load_config(RunConfig, file, words)
        assert str(caught.value).startswith(source)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E+3", -1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("3", 3),
        ("-3", -3),
        ("100_000", 100_000),
        (".inf", float("inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        # Plain words that YAML 1.1 would make something else of.
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("010", "010"),
        ("16:9", "16:9"),
        ("2026-11-21", "2026-11-21"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("[1e-4, on]", [1e-4, "on"]),
    ],
)
def test_plain_words(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "plain.yaml").write_text(f"key: {text}\n")
    option, file = (
        read_options(list(split_options(["--key", text])), None)["key"],
        read_yaml(tmp_path / "plain.yaml")["key"],
    )
    assert option == file == value
    assert type(option) is type(file) is type(value)


def test_merge_keys_and_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n")
    assert read_yaml(path)["more"] == {"a": 1, "b": 3}
    path.write_text("# nothing but a comment\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("note", ["1e-4", "on", "010", "2026-11-21", "null", "", "é: # [", ".inf", "x" * 300, "a\nb"])
def test_what_is_dumped_loads_to_an_equal_object(tmp_path: Path, note: str) -> None:
    for config in (
        RunConfig(name=note, data=FolderConfig(path=Path("a b")), note=note, ema=EMAConfig(decay=1e-5)),
        RunConfig(
            name="x",
            data=GeneratedConfig(),
            model=CNNConfig(multipliers=()),
            optimization=OptimizerConfig(lr=float("inf"), betas=(1e-12, 1.0)),
        ),
    ):
        path = tmp_path / "dumped.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(RunConfig, path) == config
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["note"] == config.note  # plain YAML readers agree


def test_help_lists_every_field_with_docstring_type_and_default() -> None:
    text = format_help(RunConfig)
    lines = [line.strip() for line in text.splitlines()]
    for field in describe_fields(RunConfig):
        position = lines.index(f"--{field.name}  {field.type}  [{field.default}]")
        assert field.help
        assert field.help in lines[position + 1 :]
    for line in (
        "--name  str  [required]",
        "--data.path  Path  [required]",
        "--data.crop  central|random  [central]",
        "--model.depth  int  [4]",  # the default of RunConfig.model, not of ViTConfig
        "--model.attention.heads  int  [4]",
        "--model.multipliers  [int, ...]  [[1, 2, 4]]",
        "--optimization.lr  float  [0.0003]",
        "--optimization.warmup  int|float  [0.1]",
        "data:  [required]",
        "model:  [vit]",
        "The network.",
        "ema:  [null]",
        "model.kind=vit:",
        "model.kind=cnn:",
    ):
        assert line in lines
    assert max(map(len, text.splitlines())) <= 120


def test_described_fields_know_their_variant() -> None:
    variants = {field.name: field.variant for field in describe_fields(RunConfig)}
    assert variants["name"] == variants["optimization.lr"] == ""
    assert variants["model.channels"] == "model.kind=cnn"
    assert variants["model.attention.heads"] == "model.kind=vit"


def test_a_field_without_docstring_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Sample\.width has no docstring: it is the help text"):

        class Sample(Config):
            depth: int = 1
            """Documented."""
            width: int = 2
