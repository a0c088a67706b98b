"""Typed configuration: YAML file + dotted overrides -> one frozen, validated object.

A class that can be configured has its `Config` standing directly above it; the attribute's docstring is the help
text. Variants are pydantic discriminated unions over a literal `kind`. Every mistake is one line: where, what was
received, and the nearest valid name.
"""

import difflib
import re
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration: keyword-only, frozen, strict types, no unknown keys, one docstring a field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True
    )


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line for the person who wrote it."""


@dataclass(frozen=True)
class FieldDescription:
    """One settable key: its dotted `name`, printable `type` and `default`, help text, and the variant it belongs to."""

    name: str
    type: str
    default: str
    help: str
    variant: str = ""


def load_config(config_type: type[ConfigT], path: str | Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Read `path` (YAML; None for all defaults), apply `overrides` and validate.

    `overrides` are command line words: `--section.field value` or `--section.field=value`, values in YAML.
    Raises ConfigError with a single line that names the file or option at fault.
    """
    values: dict[str, Any] = {}
    source = "the defaults"
    if path is not None:
        source = str(path)
        values = read_yaml(path)
    for name, value in parse_overrides(overrides):
        _assign(values, name.split("."), value)
    if overrides:
        source += " with command line options"
    return validate(config_type, values, source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping as a dict. Raises ConfigError when the file is missing, not YAML or not a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror or error}") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, this file holds a {type(values).__name__}")
    return values


def validate(config_type: type[ConfigT], values: dict[str, Any], source: str) -> ConfigT:
    """`values` as a `config_type`. Raises ConfigError: one line with `source`, the key and the nearest valid name."""
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        # An unknown key is reported first: a misspelt name often causes the other errors.
        details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise ConfigError(f"{source}: {_explain(config_type, details[0])}{more}") from None


def parse_overrides(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Command line words as (dotted name, value) pairs. Raises ConfigError for a word that is neither."""
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"expected an option like --section.field, received {word!r}")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name} VALUE")
            text = queue.pop(0)
        try:
            yield name, yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise ConfigError(f"--{name}: {text!r} is not a YAML value; put quotes around text") from None


def dump_config(config: Config) -> str:
    """The whole resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def describe_fields(config_type: type[BaseModel], prefix: str = "", variant: str = "") -> Iterator[FieldDescription]:
    """Every settable key of `config_type`, depth first, the variants of a union one after the other."""
    for key, field in config_type.model_fields.items():
        name = f"{prefix}{key}"
        variants = _variants(field.annotation)
        if not variants:
            yield FieldDescription(name, _type_name(field), _default_text(field), field.description or "", variant)
        for option in variants:
            kind = _kind(option) if len(variants) > 1 else ""
            label = f"{name}.kind={kind}" if kind else variant
            yield from describe_fields(option, f"{name}.", label)


def format_help(config_type: type[BaseModel]) -> str:
    """The `--help` text: every key with type, default and meaning, grouped by section and variant."""
    lines: list[str] = []
    group = None
    for field in describe_fields(config_type):
        section = field.variant or field.name.rpartition(".")[0]
        if section != group:
            lines += ["", f"{section or 'general'}:"]
            group = section
        lines.append(f"  --{field.name}  {field.type}  [{field.default}]")
        lines += textwrap.wrap(" ".join(field.help.split()), 104, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines).strip("\n")


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, but `1e-4` is a number (YAML 1.1 wants `1.0e-4`) and only true/false are booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tTfF"))


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--{'.'.join(path)}: {key!r} holds the value {inner!r}, not a section")
        values = inner
    values[path[-1]] = value


def _explain(config_type: type[BaseModel], detail: ErrorDetails) -> str:
    path, owner = _resolve(config_type, detail["loc"])
    name = ".".join(path)
    match detail["type"]:
        case "extra_forbidden":
            known = [field.name for field in describe_fields(config_type)]
            prefix = ".".join(path[:-1])
            siblings = [f"{prefix}.{key}" if prefix else key for key in owner.model_fields] if owner else []
            # Look among the neighbours first, then anywhere: people forget the section as often as they misspell.
            nearest = difflib.get_close_matches(name, siblings, 1, 0.7) or _same_leaf(path[-1], known)
            nearest = nearest or difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"did you mean {nearest[0]}?" if nearest else f"valid here: {', '.join(siblings)}"
            return f"unknown key {name}; {hint}"
        case "missing":
            return f"{name} is required and has no default"
        case "union_tag_invalid" | "union_tag_not_found":
            context = detail.get("ctx", {})
            expected = str(context.get("expected_tags", "")).replace("'", "")
            received = context.get("tag")
            said = f"{received!r} is not a kind" if received is not None else "kind is missing"
            options = [option.strip() for option in expected.split(",") if option.strip()]
            nearest = difflib.get_close_matches(str(received), options, 1, 0.5)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            return f"{name}.kind: {said}; {hint}one of: {expected or 'see --help'}"
        case "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            return f"{name}: {message}" if name else message
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            return f"{name}: {message}, received {detail['input']!r}"


def _same_leaf(leaf: str, known: list[str]) -> list[str]:
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    return [leaves[match] for match in difflib.get_close_matches(leaf, leaves, 1, 0.85)]


def _resolve(config_type: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """An error's location as a dotted path without pydantic's union tags, and the config class that owns its end."""
    path: list[str] = []
    owner: type[BaseModel] | None = config_type
    options: list[type[BaseModel]] = []
    for part in location:
        if options and len(options) > 1:
            tagged = [option for option in options if _kind(option) == part]
            if tagged:
                owner, options = tagged[0], []
                continue
        path.append(str(part))
        field = owner.model_fields.get(str(part)) if owner else None
        options = _variants(field.annotation) if field else []
        if options:
            owner = options[0] if len(options) == 1 else None
        elif field is not None and part != location[-1]:
            owner = None
    return path, owner


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that a field's annotation admits; empty for a plain value."""
    if get_origin(annotation) is Annotated:
        return _variants(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _variants(argument)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def _kind(config_type: type[BaseModel]) -> str:
    field = config_type.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field is not None and get_args(field.annotation) else ""


def _type_name(field: FieldInfo) -> str:
    def name(annotation: Any) -> str:
        if annotation is None or annotation is type(None):
            return "null"
        if get_origin(annotation) is Annotated:
            return name(get_args(annotation)[0])
        if get_origin(annotation) is Literal:
            return "|".join(str(option) for option in get_args(annotation))
        if get_origin(annotation) in (Union, types.UnionType):
            return "|".join(name(option) for option in get_args(annotation))
        if get_origin(annotation) in (list, tuple):
            return f"[{name(get_args(annotation)[0])}, ...]"
        return getattr(annotation, "__name__", str(annotation))

    return name(field.annotation)


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    return (
        "required"
        if default is PydanticUndefined
        else yaml.safe_dump(list(default) if isinstance(default, tuple) else default, default_flow_style=True)
        .removesuffix("\n...\n")
        .strip()
    )
