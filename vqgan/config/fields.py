"""Reads the annotations of a config's fields: the kinds of a section, and the types of a value."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def field_types(config_type: type[BaseModel], name: str) -> list[Any]:
    """Returns the types of the field of that dotted name; of several kinds of a section, one each. Empty for no
    field."""
    key, _, rest = name.partition(".")
    field = config_type.model_fields.get(key)
    if field is None:
        return []
    if not rest:
        return [field.annotation]
    return [found for option in variants(field.annotation) for found in field_types(option, rest)]


def variants(annotation: Any) -> list[type[BaseModel]]:
    """Returns the config classes that a field's annotation admits; empty for a plain value."""
    if get_origin(annotation) is Annotated:
        return variants(get_args(annotation)[0])
    if is_union(annotation):
        return [option for argument in get_args(annotation) for option in variants(argument)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def kind_of(config_type: type[BaseModel]) -> str:
    field = config_type.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field is not None and get_args(field.annotation) else ""


def type_name(field: FieldInfo) -> str:
    def name(annotation: Any) -> str:
        if annotation is None or annotation is type(None):
            return "null"
        if get_origin(annotation) is Annotated:
            return name(get_args(annotation)[0])
        if get_origin(annotation) is Literal:
            return "|".join(str(option) for option in get_args(annotation))
        if is_union(annotation):
            return "|".join(name(option) for option in get_args(annotation))
        if get_origin(annotation) in (list, tuple):
            return f"[{name(get_args(annotation)[0])}, ...]"
        return getattr(annotation, "__name__", str(annotation))

    return name(field.annotation)


def default_of(field: FieldInfo) -> Any:
    """Returns a field's default value; None where it is required or depends on the other fields."""
    if field.is_required() or field.default_factory_takes_validated_data:
        return None
    return field.get_default(call_default_factory=True)
