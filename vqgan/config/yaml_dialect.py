"""The YAML of config files: PyYAML's safe loader and dumper with the plain words of YAML 1.2."""

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

_MOST_VALUES, _DEEPEST = 10_000, 50
"""Values in a document, each counted as often as it is referred to, and how deep they are nested."""
_LARGEST = 1 << 63


class NotYAMLError(ValueError):
    """Text that is not YAML, or has values that no config has; the message is one line."""


class Loader(yaml.SafeLoader):
    """YAML loader with the plain scalars of YAML 1.2 and unique keys.

    YAML 1.1, which PyYAML speaks, reads `1e-4` as text, `on` and `no` as booleans, `010` as 8, `16:9` as 969.
    """

    _nodes = _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Counts values while parsing, because parsing alone may take PyYAML seconds."""
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._nodes > 2 * _MOST_VALUES or self._depth > _DEEPEST:
            what = "nested too deeply" if self._depth > _DEEPEST else f"of more than {_MOST_VALUES} values"
            raise yaml.MarkedYAMLError(problem=f"it is {what}", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - PyYAML's name
        if self.flow_level > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=node.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Limits merged mappings (`<<`), which may double with every line."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem="too many keys are merged", problem_mark=node.start_mark)


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"(~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(true|True|false|False)", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf)|\.nan", list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes every text which YAML 1.1 or `Loader` would read as another type."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
}


def dump(value: Any, **options: Any) -> str:
    """`value` as YAML that `Loader` reads back to an equal one."""
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True, **options)


def load(text: str) -> Any:
    """Returns what `text` says in YAML: None, booleans, numbers, text, lists, and mappings by text.

    Raises NotYAMLError for what is not YAML, and for what is no such value: dates, bytes, numbers beyond 64 bits,
    values that hold themselves, or too many of them.
    """
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise NotYAMLError(where + " ".join(filter(None, (error.context, error.problem)))) from None
    except RecursionError:
        raise NotYAMLError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # of a tag and its text
        raise NotYAMLError(" ".join(str(error).split())[:200]) from None
    _count(value, {}, 0)
    return value


def _count(value: Any, counted: dict[int, int], depth: int) -> int:
    """Returns how many values there are in `value`. Raises NotYAMLError where they are too many, or not plain."""
    if depth > _DEEPEST:
        raise NotYAMLError("it is nested too deeply, or holds itself")
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise NotYAMLError("half a surrogate pair is no text")
        return 1
    if isinstance(value, dict | list):
        if id(value) not in counted:
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                wrong = next(key for key in value if not isinstance(key, str))
                raise NotYAMLError(f"the key {str(wrong)[:80]!r} is a {type(wrong).__name__}, keys are words")
            parts = value.values() if isinstance(value, dict) else value
            counted[id(value)] = 1 + sum(_count(part, counted, depth + 1) for part in parts)
        if counted[id(value)] > _MOST_VALUES:
            raise NotYAMLError(f"it holds more than {_MOST_VALUES} values")
        return counted[id(value)]
    if value is None or isinstance(value, bool | float):
        return 1
    if isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise NotYAMLError(f"a whole number of some {int(math.log10(abs(value))) + 1} digits is too large")
        return 1
    raise NotYAMLError(f"a {type(value).__name__} is no value of a config")
