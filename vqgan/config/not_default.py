"""The settings of a config that differ from the defaults: what somebody chose."""

from typing import Any

from pydantic_core import to_jsonable_python

from vqgan.config.fields import default_of, kind_of
from vqgan.config.schema import Config


def not_default(config: Config, default: Config | None = None, prefix: str = "") -> dict[str, Any]:
    """Returns those settings as plain values by dotted names, the required ones among them.

    A section is compared with the one that its field has by default where both are of the same kind, else with its own
    class; its `kind` is then named too.
    """
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        key, value = prefix + name, getattr(config, name)
        usual = default_of(field) if default is None else getattr(default, name)
        if isinstance(value, Config):
            same_kind = type(usual) is type(value)
            inner = not_default(value, usual if same_kind else None, f"{key}.")
            if not same_kind and (kind := kind_of(type(value))):
                inner = {f"{key}.kind": kind} | inner
            found |= inner or ({} if same_kind else {key: "at its defaults"})
        elif value != usual or (default is None and field.is_required()):
            found[key] = to_jsonable_python(value)
    return found
