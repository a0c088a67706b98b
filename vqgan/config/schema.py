"""Typed configuration: YAML file + dotted overrides -> one frozen, validated object.

A class that can be configured has its `Config` standing directly above it; the attribute's docstring is the help
text. Variants are pydantic discriminated unions over a literal `kind`. A section that is given in part is completed
from its field's default: with `model: Model = Vit(depth=4)`, the one option `--model.width 64` changes the width only.
Every mistake is one line: where, what was received, and the nearest valid name.
"""

import copy
import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python

from vqgan.config.fields import default_of, is_union, kind_of, type_name, variants
from vqgan.config.options import read_options, split_options
from vqgan.config.shipped_configs import find_config, nearest_configs
from vqgan.config.yaml_dialect import NotYAMLError, dump, load
from vqgan.errors import ConfigError as ConfigError
from vqgan.system.bounded_file import read_bounded

ConfigT = TypeVar("ConfigT", bound="Config")

_LARGEST_FILE = 1 << 20
"""Bytes of a config file."""
_LONGEST_LINE = 1000
"""Characters of an error; a value in it may be of any length."""


class Config(BaseModel):
    """Base of every configuration: keyword-only, frozen, strict types, no unknown keys, one docstring a field.

    The config of a part of a run says which of its fields a run that resumes may change: `class X(Config,
    fixed=("heads",), may_change=("dropout",))`. What is fixed decides what the weights mean (see
    `vqgan.config.changes`).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True
    )

    fields_fixed: ClassVar[frozenset[str]] = frozenset()
    fields_that_may_change: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, *, fixed: Sequence[str] = (), may_change: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bases = [base for base in cls.__bases__ if issubclass(base, Config)]
        cls.fields_fixed = _union(base.fields_fixed for base in bases).difference(may_change).union(fixed)
        inherited = _union(base.fields_that_may_change for base in bases)
        cls.fields_that_may_change = inherited.difference(fixed).union(may_change)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if unknown := sorted((cls.fields_fixed | cls.fields_that_may_change) - cls.model_fields.keys()):
            raise TypeError(f"{cls.__qualname__} has no field {unknown[0]} to be fixed or to change")
        for name, field in cls.model_fields.items():
            if not field.description:  # a subclass that changes a default need not say again what the field is
                bases = (base for base in cls.__mro__[1:] if issubclass(base, BaseModel) and name in base.model_fields)
                field.description = next((base.model_fields[name].description for base in bases), None)
            if not field.description and _has_source(cls):
                raise TypeError(
                    f"{cls.__qualname__}.{name} has no docstring: it is the help text; write one line below the field"
                )


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


@dataclass(frozen=True)
class FieldDescription:
    """One settable key: its dotted `name`, printable `type` and `default`, help text, and the variant it belongs to."""

    name: str
    type: str
    default: str
    help: str
    variant: str = ""


def load_config(
    config_type: type[ConfigT],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Read `path` (YAML; None for `defaults`, or all of the class's), apply `overrides` and validate.

    `overrides` are command line words (`vqgan.config.options`). Raises ConfigError with a single line that names the
    file or option at fault.
    """
    given = read_options(list(split_options(overrides)), config_type)
    return apply_options(config_type, path, given, defaults)


def apply_options(
    config_type: type[ConfigT],
    path: str | Path | None,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> ConfigT:
    """`load_config` with options that are read already: values by dotted names."""
    values: dict[str, Any] = copy.deepcopy(dict(defaults or {}))
    source = "the defaults"
    if path is not None:
        source = str(path)
        values = read_yaml(path)
    for name, value in given.items():
        _assign(values, name.split("."), value)
    if given:
        source = "command line" if path is None else f"{source} with command line options"
    return validate(config_type, values, source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping as a dict, of a file or a shipped config.

    Raises ConfigError when it is missing, not YAML or not a mapping.
    """
    path = find_config(path)
    try:
        values = load(read_bounded(path, _LARGEST_FILE).decode())
    except OSError as error:
        nearest = [] if path.exists() else nearest_configs(path)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror or error}{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except NotYAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, this file holds a {type(values).__name__}")
    return values


def validate(config_type: type[ConfigT], values: dict[str, Any], source: str) -> ConfigT:
    """`values` as a `config_type`. Raises ConfigError: one line with `source`, the key and the nearest valid name."""
    try:
        # Read as JSON: strict types then still take a list for a tuple, and text for a path.
        return config_type.model_validate_json(json.dumps(_completed(config_type, values), default=to_jsonable_python))
    except ValidationError as error:
        # An unknown key is reported first: a misspelt name often causes the other errors.
        details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        line = f"{source}: {_explain(config_type, details[0])}"
        raise ConfigError((line if len(line) < _LONGEST_LINE else line[:_LONGEST_LINE] + " ...") + more) from None


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Returns nested settings under dotted names, as plain values; lists as text."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def dump_config(config: Config) -> str:
    """Returns the whole resolved configuration as YAML that `load_config` reads back to an equal object."""
    return dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def describe_fields(config_type: type[BaseModel], prefix: str = "", variant: str = "") -> Iterator[FieldDescription]:
    """Returns every settable key of `config_type`, depth first, the variants of a union one after the other."""
    return (field for field in _walk(config_type, prefix, variant, None) if field.type != _SECTION)


def format_help(config_type: type[BaseModel], names: Mapping[str, str] | None = None) -> str:
    """The `--help` text: every key with type, default and meaning, grouped by section and variant.

    `names` are the shorter ones of options, by key.
    """
    names = names or {}
    lines: list[str] = []

    def write_help(text: str) -> None:
        lines.extend(textwrap.wrap(" ".join(text.split()), 104, initial_indent=" " * 6, subsequent_indent=" " * 6))

    group = None
    for field in _walk(config_type, "", "", None):
        section = field.name if field.type == _SECTION else field.name.rpartition(".")[0]
        if (section, field.variant) != group:
            group = (section, field.variant)
            kind = field.variant if field.variant.startswith(f"{section}.kind=") else ""
            only = f" ({field.variant})" if field.variant and not kind else ""
            lines += ["", f"{kind or section or 'general'}{only}:"]
        if field.type == _SECTION:
            lines[-1] += f"  [{field.default}]" if field.default else ""
            write_help(field.help)
        else:
            lines.append(f"  --{names.get(field.name, field.name)}  {field.type}  [{field.default}]")
            write_help(field.help)
    return "\n".join(lines).strip("\n")


_SECTION = "section"
"""The `type` of a description that stands for a whole section."""


def _has_source(config_type: type[BaseModel]) -> bool:
    """Returns whether docstrings can be read at all: not for a class that was typed at a prompt."""
    try:
        inspect.getsource(config_type)
    except (OSError, TypeError):
        return False
    return True


def _completed(
    config_type: type[BaseModel], values: dict[str, Any], default: BaseModel | None = None
) -> dict[str, Any]:
    """`values` over `default`, and so in every section whose field has a default of the same kind."""
    merged = default.model_dump(mode="json") if default is not None else {}
    for key, value in values.items():
        merged[key] = value
        field = config_type.model_fields.get(key)
        options = variants(field.annotation) if field is not None else []
        if field is None or not options or not isinstance(value, dict):
            continue
        inner = getattr(default, key) if default is not None else default_of(field)
        if isinstance(inner, BaseModel) and value.get("kind", kind_of(type(inner))) == kind_of(type(inner)):
            merged[key] = _completed(type(inner), value, inner)
        else:
            chosen = [option for option in options if len(options) == 1 or kind_of(option) == value.get("kind")]
            merged[key] = _completed(chosen[0], value) if chosen else value
    return merged


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--{'.'.join(path)}: {key!r} holds the value {inner!r}, not a section")
        values = inner
    values[path[-1]] = value


def _explain(config_type: type[BaseModel], detail: ErrorDetails) -> str:
    path, owner, field = _resolve(config_type, detail["loc"])
    name = ".".join(path)
    received = detail["input"]
    options = variants(field.annotation) if field is not None else []
    kinds = [kind_of(option) for option in options if len(options) > 1]
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key {name}; {_nearest_key(config_type, path, owner)}"
        case "missing":
            choose = f"; choose one with {name}.kind: {', '.join(kinds)}" if kinds else ""
            return f"{name} is required and has no default{choose}"
        case "union_tag_not_found":
            return f"{name}.kind is missing; one of: {', '.join(kinds)}"
        case "union_tag_invalid":
            tag = str(context.get("tag"))
            return f"{name}.kind: {tag!r} is not a kind; {_did_you_mean(tag, kinds)}one of: {', '.join(kinds)}"
        case _ if options and not isinstance(received, dict):
            keys = ", ".join(["kind"] if kinds else list(options[0].model_fields)[:4])
            return f"{name}: a section is a mapping of keys ({keys}, ...) to values, received {_show(received)}"
        case "literal_error":
            words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            hint = _did_you_mean(str(received), words)
            return f"{name}: {_show(received)} is not a choice; {hint}one of: {context.get('expected', '')}"
        case "string_type" if isinstance(received, (int, float)):
            return f"{name}: input should be text, received the {type(received).__name__} {received}; put it in quotes"
        case "value_error" | "assertion_error":
            message = " ".join(str(context.get("error", detail["msg"])).split())
            return f"{name}: {message}" if name else message
        case _:
            message = " ".join(detail["msg"].split())
            return f"{name}: {message[0].lower()}{message[1:]}, received {_show(received)}"


def _nearest_key(config_type: type[BaseModel], path: list[str], owner: type[BaseModel] | None) -> str:
    name, prefix = ".".join(path), "".join(f"{part}." for part in path[:-1])
    known = list(describe_fields(config_type))
    elsewhere = [field.variant for field in known if field.name == name]
    if elsewhere:
        return f"it belongs to {' and '.join(elsewhere)}"
    siblings = [f"{prefix}{key}" for key in owner.model_fields] if owner else []
    # Look among the neighbors first, then anywhere: people forget the section as often as they misspell.
    names = [field.name for field in known]
    nearest = difflib.get_close_matches(path[-1], owner.model_fields, 1, 0.6) if owner else []
    if nearest:
        return f"did you mean {prefix}{nearest[0]}?"
    nearest = _same_leaf(path[-1], names) or difflib.get_close_matches(name, names, 1, 0.75)
    return f"did you mean {nearest[0]}?" if nearest else f"valid here: {', '.join(siblings)}"


def _did_you_mean(word: str, options: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, options, 1, 0.5)
    return f"did you mean {nearest[0]}? " if nearest else ""


def _show(value: Any) -> str:
    return textwrap.shorten(repr(value), 80, placeholder=" ...")


def _same_leaf(leaf: str, known: list[str]) -> list[str]:
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    return [leaves[match] for match in difflib.get_close_matches(leaf, leaves, 1, 0.85)]


def _resolve(
    config_type: type[BaseModel], location: Sequence[int | str]
) -> tuple[list[str], type[BaseModel] | None, FieldInfo | None]:
    """Returns an error's location as a dotted path without pydantic's union tags; the class and the field at its
    end."""
    path: list[str] = []
    owner: type[BaseModel] | None = config_type
    inside: type[BaseModel] | None = config_type  # what the next part is a key of
    options: list[type[BaseModel]] = []
    field: FieldInfo | None = None
    for part in location:
        tagged = [option for option in options if len(options) > 1 and kind_of(option) == part]
        if tagged:
            inside, options = tagged[0], []
            continue
        if inside is None and isinstance(part, str) and field is not None and is_union(field.annotation):
            continue  # pydantic's name for the member of a union of plain types
        path.append(str(part))
        if isinstance(part, int) and field is not None and get_origin(field.annotation) in (list, tuple):
            options = variants(get_args(field.annotation)[0])  # a list of sections
            inside = options[0] if len(options) == 1 else None
            continue
        owner = inside
        if owner is not None:
            field = owner.model_fields.get(str(part))
        options = variants(field.annotation) if field is not None and owner is not None else []
        inside = options[0] if len(options) == 1 else None
    return path, owner, field


def _walk(
    config_type: type[BaseModel], prefix: str, variant: str, default: BaseModel | None
) -> Iterator[FieldDescription]:
    """`describe_fields`, with an entry for each section before its keys, and with the defaults of `default`."""
    for key, field in config_type.model_fields.items():
        name, help_text = f"{prefix}{key}", field.description or ""
        value = getattr(default, key) if default is not None else default_of(field)
        required = default is None and field.is_required()
        options = variants(field.annotation)
        if not options:
            text = "required" if required else dump(to_jsonable_python(value), default_flow_style=True, width=10**9)
            text = text.removesuffix("\n").removesuffix("\n...").strip()
            yield FieldDescription(name, type_name(field), text, help_text, variant)
            continue
        kind = kind_of(type(value)) if isinstance(value, BaseModel) and len(options) > 1 else ""
        yield FieldDescription(
            name, _SECTION, "required" if required else "null" if value is None else kind, help_text, variant
        )
        for option in options:
            label = f"{name}.kind={kind_of(option)}" if len(options) > 1 else variant
            yield from _walk(option, f"{name}.", label, value if isinstance(value, option) else None)
