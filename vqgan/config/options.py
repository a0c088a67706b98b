"""Words of a command line as settings of a config: one spelling for every command.

`--section.field value` or `--section.field=value`; a dash in a name is an underscore. The field's type says how a value
is read (`vqgan.config.option_values`): text as it stands, anything else in YAML. A yes-or-no field needs no value:
`--watch` is `--watch true`.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from vqgan.config.fields import field_types
from vqgan.config.option_values import read_word
from vqgan.errors import ConfigError

_FLAGS = ("help", "print_config")
"""Options of every command that never have a value."""


class Option(NamedTuple):
    """One option as it was typed: its name with underscores, and its value, None where there is none.

    A word that belongs to no option has the name "".
    """

    name: str
    word: str | None

    def required(self) -> str:
        """Its value. Raises ConfigError where there is none."""
        if self.word is None:
            raise ConfigError(f"--{self.name} needs a value: --{self.name} VALUE")
        return self.word


@dataclass(frozen=True)
class Shortcuts:
    """What a command accepts beside the dotted names of its config."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields: `top_k` for `sampling.top_k`."""
    one_by_one: Collection[str] = ()
    """Lists of texts that are given one by one, each as it stands: `--prompt "a cat" --prompt "a dog"`."""
    words: str = ""
    """The one of them that takes the words that belong to no option."""


NO_SHORTCUTS = Shortcuts()


def split_options(words: Sequence[str]) -> Iterator[Option]:
    """Each option with its value."""
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--":
            yield Option("help", None) if word == "-h" else Option("", word)
            continue
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if equals:
            yield Option(name, text)
        elif name in _FLAGS or not queue or queue[0].startswith("--"):
            yield Option(name, None)
        else:
            yield Option(name, queue.pop(0))


def read_options(
    options: Sequence[Option], config_type: type[BaseModel] | None, shortcuts: Shortcuts = NO_SHORTCUTS
) -> dict[str, Any]:
    """Dotted names to values, each as its field's type says; in YAML without a type. Of two of a name the last holds.

    Raises ConfigError for a word that belongs to no option, for a value that is missing, or is not of its kind.
    """
    values: dict[str, Any] = {}
    for option in options:
        if not option.name and not shortcuts.words:
            raise ConfigError(f"expected an option like --section.field, received {option.word!r}")
        name = shortcuts.names.get(option.name, option.name) or shortcuts.words
        if shortcuts.names and config_type is not None and name.partition(".")[0] not in config_type.model_fields:
            raise ConfigError(f"unknown option --{option.name}; {_nearest(option.name, config_type, shortcuts)}")
        if name in shortcuts.one_by_one:
            values.setdefault(name, []).append(option.required())
            continue
        types = field_types(config_type, name) if config_type is not None else []
        if option.word is None and bool in types:
            values[name] = True
            continue
        try:
            values.pop(name, None)  # the last one, in its place
            values[name] = read_word(option.required(), types)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"--{option.name}: {error}") from None
    return values


def _nearest(name: str, config_type: type[BaseModel], shortcuts: Shortcuts) -> str:
    known = [*shortcuts.names, *config_type.model_fields]
    nearest = difflib.get_close_matches(name, known, 1, 0.6)
    return f"did you mean --{nearest[0]}?" if nearest else f"valid: {', '.join(f'--{option}' for option in known)}"
