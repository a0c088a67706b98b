"""Settings of a check from the command line: a data set, or the config of the run that would read it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from parti.code_cache.manifest import read_record
from parti.objectives import OBJECTIVES
from parti.reranker.train_reranker import TrainRerankerConfig
from parti.text import TextConfig, TextTokenizerConfig
from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig
from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from vqgan.cli.command_line import split_arguments
from vqgan.config.schema import Config, ConfigError, load_config, read_yaml, validate
from vqgan.config.yaml_dialect import NotYAMLError, load
from vqgan.data.folders.listing import EXTENSIONS, METADATA_FILES
from vqgan.data.loader import DataConfig
from vqgan.data.sources.huggingface_files import FILE_BUILDERS
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.parallel.seeding import SEEDS

_SECTIONS = ("data", "text", "seed")
"""The part of a run's config that a check uses."""
_WITHOUT_FILES = ("shapes", "openmoji")


class CheckConfig(Config):
    """A check of both splits of a data set."""

    data: DataConfig = DataConfig()
    """The data set, as in a training config."""
    text: TextConfig = TextTokenizerConfig()
    """The vocabulary that captions are tokenized with, and its length."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of the batch that is drawn: the first of a run with this seed."""
    require_captions: bool = False
    """Count images without a caption as broken, as stage 2 does. True with --text, and with the config of a stage-2
    run."""
    limit: int = Field(0, ge=0)
    """Items of each split to read, evenly spread if the source has an index, else the first ones; 0 for all."""
    near_duplicates: bool = True
    """Search for near duplicates (saved again, resized) besides exact ones."""
    max_broken: float = Field(0.0, ge=0, le=1)
    """A larger fraction of broken items is a problem: exit code 1."""
    max_unused: float = Field(0.0, ge=0, le=1)
    """A larger fraction of possibly intended but unused items (linked folders, files of unknown endings that may hold
    images, ...) is a problem."""
    max_cut: float = Field(0.1, ge=0, le=1)
    """A larger fraction of truncated captions is a problem."""
    max_shared: float = Field(0.0, ge=0, le=1)
    """A larger fraction of validation images that are also training images is a problem."""
    image: str | None = "out/check_data.png"
    """File for a sheet of the first images of the first batch, as the model sees them; null: none."""
    images: int = Field(24, gt=0)
    """Number of images on that sheet."""
    report: str | None = None
    """JSON file for every metric and name; null: none."""


def load_settings(argv: Sequence[str]) -> tuple[CheckConfig, bool]:
    """Returns the settings from command line words, and whether to print them only.

    Raises ConfigError with one line, or DataError for a code cache that is not there.
    """
    path, words, print_config = split_arguments([_underscored(word) for word in argv])
    values: dict[str, Any] = {}
    data, words = _taken(words, "data")
    text, words = _taken(words, "text")
    if path is None and data is not None and Path(data).suffix in (".yaml", ".yml"):
        path, data = Path(data), None
    if path is not None:
        recorded, words = _as_trained(path, words, other_data=data is not None)
        values = _of_run(recorded)
    if data is not None:
        values["data"] = {**values.get("data", {}), **_data(data)}
    if text is not None:
        values["text"] = _mapping(text) or {"kind": "saved", "folder": text}
        values["require_captions"] = True
    if path is None and data is None and not any(word.startswith("--data.source") for word in words):
        load_config(CheckConfig, None, words)  # reports a misspelt --data as such
        raise ConfigError("nothing to check: give --data PATH (a folder, a tar or a Parquet file) or --config FILE")
    return load_config(CheckConfig, None, words, values), print_config


def _as_trained(path: Path, words: Sequence[str], *, other_data: bool) -> tuple[dict[str, Any], list[str]]:
    """Returns a run's config with the options of its training command, and those of `words` that a check takes itself.

    So a training command with all its options can be checked, whatever it sets for the model or the number of steps.
    With `other_data` options of the source do not refer to the config's own source.
    """
    values = read_yaml(path)
    run = _run_of(values)
    own = [option for option in _options(words) if _section(option) in CheckConfig.model_fields]
    check = [word for option in own if not option[0].startswith("--data.codes") for word in option]
    given = [option for option in _options(words) if _section(option) not in CheckConfig.model_fields]
    given += [
        option
        for option in own
        if _section(option) in _SECTIONS and not (other_data and option[0].startswith("--data.source"))
    ]
    if run is None or not given:
        return values, check
    missing = {name for name, field in run.model_fields.items() if field.is_required()} - values.keys()
    missing -= {_section(option) for option in given}
    overrides = [*(word for option in given for word in option), *(f"--{name}=?" for name in sorted(missing))]
    return load_config(run, path, overrides).model_dump(mode="json"), check


def _options(words: Sequence[str]) -> list[list[str]]:
    """Returns each option with its value."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not found or len(found[-1]) == 2 or "=" in found[-1][0]:
            found.append([word])
        else:
            found[-1].append(word)
    return found


def _section(option: Sequence[str]) -> str:
    """Returns `data` for `--data.batch_size 8`."""
    return re.split(r"[.=]", option[0].removeprefix("--"), maxsplit=1)[0]


def _of_run(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the sections of a run's config that say what it reads, with the defaults of that kind of run."""
    sections = {name: values[name] for name in _SECTIONS if name in values}
    data = dict(sections.get("data") or {})
    codes = data.pop("codes", None)
    if codes is not None:  # then its images are those of the cache
        record = read_record(Path(codes).expanduser())
        data |= {"source": record.source.model_dump(mode="json"), "transform": record.transform.model_dump(mode="json")}
    if "data" in sections:
        sections["data"] = data
    run = _run_of(values)
    if run is None:  # an invalid config; errors in the part that a check reads are reported later
        return sections | {"require_captions": "text" in values or "objective" in values}
    default = run.model_fields.get("text")
    if default is not None and "text" not in sections:
        sections["text"] = default.get_default().model_dump(mode="json")
    return sections | {"require_captions": run not in (TrainVQGANConfig, TrainUpsamplerConfig)}


def _run_of(values: dict[str, Any]) -> type[Config] | None:
    """Returns the run class of a config; None if the config is invalid."""
    runs: list[type[Config]] = [TrainVQGANConfig, TrainUpsamplerConfig, TrainRerankerConfig, TrainTextEncoderConfig]
    if "objective" in values and values["objective"] in OBJECTIVES:
        runs = [OBJECTIVES[values["objective"]].config_type]
    else:
        runs += [objective.config_type for objective in OBJECTIVES.values()]
    return next((run for run in runs if _fits(run, values)), None)


def _fits(run: type[Config], values: dict[str, Any]) -> bool:
    """Returns whether a file is the config of such a run, apart from what the command line must add."""
    given = {name: "?" for name, field in run.model_fields.items() if field.is_required()} | values
    try:
        validate(run, given, "")
    except ConfigError:
        return False
    return True


def _data(value: str) -> dict[str, Any]:
    """Returns the `data` section for `--data VALUE`. Raises ConfigError if nothing is found."""
    mapping = _mapping(value)
    if mapping is not None:
        return {"source": mapping} if "kind" in mapping else mapping
    if value in _WITHOUT_FILES:
        return {"source": {"kind": value}}
    path = Path(value).expanduser()
    if path.is_dir():
        return {"source": _folder(path, value)}
    if value.endswith(".tar"):  # a path or an address, one shard or a pattern
        return {"source": {"kind": "shards", "path": value}}
    if path.is_file():
        return {"source": {"kind": "dataset", "name": value}}
    raise ConfigError(
        f"--data {value}: no such file or folder; others are written as in a config, a Hub data set for example as "
        "--data '{kind: dataset, name: owner/name, streaming: true}'"
    )


def _folder(path: Path, value: str) -> dict[str, Any]:
    """Returns the source for a folder: images, tar shards, or a folder that `datasets` opens, such as Parquet files."""
    names = [file.name for file in path.iterdir()]
    saved = any(name in ("state.json", "dataset_dict.json") for name in names)
    endings = {Path(name).suffix.lower() for name in names if name.lower() not in METADATA_FILES}
    if ".tar" in endings and not endings & set(EXTENSIONS):
        return {"kind": "shards", "path": value}
    if saved or (endings & set(FILE_BUILDERS) and not endings & set(EXTENSIONS)):
        return {"kind": "dataset", "name": value}
    return {"kind": "folder", "path": value}


def _mapping(value: str) -> dict[str, Any] | None:
    """Returns a YAML value if it is a mapping."""
    if not value.lstrip().startswith("{"):
        return None
    try:
        return dict(load(value))
    except (NotYAMLError, TypeError) as error:
        raise ConfigError(f"{value!r} is not a YAML mapping: {error}; put quotes around it") from None


def _taken(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Returns the value of an option, and the words without it."""
    rest = list(words)
    for index, word in enumerate(words):
        if word.startswith(f"--{name}="):
            del rest[index]
            return word.partition("=")[2], rest
        if word == f"--{name}":
            if index + 1 == len(words) or words[index + 1].startswith("--"):
                raise ConfigError(f"--{name} needs a value")
            del rest[index : index + 2]
            return words[index + 1], rest
    return None, rest


def _underscored(word: str) -> str:
    """Returns the words with dashes in option names replaced by underscores; values are unchanged."""
    option = re.match(r"--[a-z_.-]+", word)
    if option is None or word == "--print-config":
        return word
    return "--" + option.group()[2:].replace("-", "_") + word[option.end() :]
