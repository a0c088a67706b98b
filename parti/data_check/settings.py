"""Settings of a check from the command line: a data set, or the config of the run that would read it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from parti.captioned_run import CaptionedRunConfig
from parti.code_cache.manifest import read_record
from parti.objectives import choose_objective
from parti.text import TextConfig, TextTokenizerConfig
from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, apply_options, read_yaml
from vqgan.config.yaml_dialect import NotYAMLError, load
from vqgan.data.folders.listing import EXTENSIONS, METADATA_FILES
from vqgan.data.loader import DataConfig
from vqgan.data.sources.huggingface_files import FILE_BUILDERS
from vqgan.errors import ConfigError
from vqgan.training.parallel.seeding import SEEDS
from vqgan.training.run_config import RunConfig

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


def load_check_config(path: Path | None, options: Sequence[Option]) -> CheckConfig:
    """The settings that a config file and options ask for.

    Raises ConfigError with one line, or DataError for a code cache that is not there.
    """
    shortcuts = {option.name: option.required() for option in options if option.name in ("data", "text")}
    options = [option for option in options if option.name not in shortcuts]
    data, text = shortcuts.get("data"), shortcuts.get("text")
    if path is None and data is not None and Path(data).suffix in (".yaml", ".yml"):
        path, data = Path(data), None
    values: dict[str, Any] = {}
    if path is not None:
        run_type = choose_objective(path, {option.name: option.word for option in options}.get("objective")).config_type
        recorded, options = _as_trained(run_type, path, options, other_data=data is not None)
        values = _of_run(run_type, recorded)
    if data is not None:
        values["data"] = {**values.get("data", {}), **_data(data)}
    if text is not None:
        values["text"] = _mapping(text) or {"kind": "saved", "folder": text}
        values["require_captions"] = True
    given = read_options(options, CheckConfig)
    if path is None and data is None and not any(name.startswith("data.source") for name in given):
        apply_options(CheckConfig, None, given)  # a misspelt --data is told as such
        raise ConfigError("nothing to check: give --data PATH (a folder, a tar or a Parquet file) or --config FILE")
    return apply_options(CheckConfig, None, given, values)


def _as_trained(
    run_type: type[RunConfig], path: Path, options: Sequence[Option], *, other_data: bool
) -> tuple[dict[str, Any], list[Option]]:
    """A run's config with the options of its training command, and those of them that a check takes itself.

    So a training command with all its options can be checked, whatever it sets for the model or the number of steps.
    With `other_data` options of the source do not refer to the config's own source.
    """
    own = [option for option in options if _section(option) in CheckConfig.model_fields]
    of_run = [option for option in options if _section(option) not in CheckConfig.model_fields] + [
        option
        for option in own
        if _section(option) in _SECTIONS and not (other_data and option.name.startswith("data.source"))
    ]
    check = [option for option in own if not option.name.startswith("data.codes")]
    values = read_yaml(path)
    if not of_run:  # then what is wrong with its model is of no matter
        return values, check
    given = read_options(of_run, run_type)
    for name, field in run_type.model_fields.items():
        if field.is_required() and name not in values:
            given.setdefault(name, "?")  # of no matter either
    return apply_options(run_type, path, given).model_dump(mode="json"), check


def _section(option: Option) -> str:
    """`data` of `--data.batch_size 8`."""
    return option.name.partition(".")[0]


def _of_run(run_type: type[RunConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a run's config that say what it reads, with the defaults of that kind of run."""
    sections = {name: values[name] for name in _SECTIONS if name in values}
    data = dict(sections.get("data") or {})
    codes = data.pop("codes", None)
    if codes is not None:  # then its images are those of the cache
        record = read_record(Path(codes).expanduser())
        data |= {"source": record.source.model_dump(mode="json"), "transform": record.transform.model_dump(mode="json")}
    if "data" in sections:
        sections["data"] = data
    default = run_type.model_fields.get("text")
    if default is not None and "text" not in sections:
        sections["text"] = default.get_default().model_dump(mode="json")
    return sections | {"require_captions": issubclass(run_type, CaptionedRunConfig)}


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
