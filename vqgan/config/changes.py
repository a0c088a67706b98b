"""Which settings of a run may change when it resumes, and which determine the meaning of its weights.

The number of heads, a kernel, a norm or an activation does not show in a tensor's shape: weights trained with 2 heads
load into a network with 4, which computes something else. Each config class declares its fields as `fixed` or
`may_change` (see `vqgan.config.schema.Config`); a section's fields are declared by its own class, and an optional
section is a field too.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from vqgan.config.schema import Config

GIVEN, NONE = "given", "none"
"""The record of an optional section."""


def fixed_settings(config: Config, prefix: str = "", *, with_defaults: bool = True) -> dict[str, Any]:
    """Returns the settings that determine the meaning of the weights, as plain values by dotted names.

    Settings at the default of their class are left out, so that settings added in later versions do not matter.
    """
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        is_fixed = name in type(config).fields_fixed
        if sections_of(field.annotation):
            if is_fixed:
                found[prefix + name] = NONE if value is None else GIVEN
            if isinstance(value, Config):
                found |= fixed_settings(value, f"{prefix}{name}.", with_defaults=with_defaults)
        elif is_fixed and (with_defaults or field.is_required() or value != field.default):
            found[prefix + name] = to_jsonable_python(value)
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the differences of two `fixed_settings`, among the settings that both have."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return [f"{name} was {before[name]} and is {now[name]}" for name in names]


def unclassified(config_type: type[BaseModel]) -> Iterator[str]:
    """Yields the fields of a config and of its sections that are declared neither fixed nor changeable, once each."""
    seen: set[type[BaseModel]] = set()

    def walk(kind: type[BaseModel]) -> Iterator[str]:
        if kind in seen:
            return
        seen.add(kind)
        known = kind.fields_fixed | kind.fields_that_may_change if issubclass(kind, Config) else frozenset()
        for name, field in kind.model_fields.items():
            sections = sections_of(field.annotation)
            if name not in known and (not sections or type(None) in get_args(field.annotation)):
                yield f"{kind.__module__}.{kind.__qualname__}.{name}"
            for section in sections:
                yield from walk(section)

    yield from walk(config_type)


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Returns the config classes that a field's type admits; empty for a plain value, and for a list of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if getattr(annotation, "__origin__", None) in (list, tuple, dict):
        return []
    return [section for argument in get_args(annotation) for section in sections_of(argument)]
