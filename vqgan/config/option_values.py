"""A word of the command line as the value of a field: the field's type says how it is read.

Text and paths stand as they were given, quotes, hashes and all: `--run-dir "exp #2"` is that folder. Where text may be
absent, the word `null` says so. Every other field is read as YAML, on a line of its own: numbers, lists, whole
sections.
"""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from vqgan.config.yaml_dialect import Loader, NotYAMLError, load


def read_word(word: str, annotations: Sequence[Any]) -> Any:
    """Returns the value of `word` for a field of one of these types; of no type, where there is no such field.

    Raises ValueError where it should be YAML and is not.
    """
    plain = [option for annotation in annotations for option in _options(annotation)]
    if plain and all(_is_text(option) for option in plain if option is not type(None)):
        return None if word == "null" and type(None) in plain else word
    try:
        value = load(word)
    except NotYAMLError as error:
        if not annotations:  # what is wrong is the name, which will be said
            return word
        raise ValueError(f"{_shown(word)} is not a YAML value: {error}") from None
    if unread := _unread(word):
        raise ValueError(
            f"of {_shown(word)} YAML does not read {_shown(unread)}, a comment; put quotes around text that has a hash"
        )
    return value


def _options(annotation: Any) -> list[Any]:
    """Returns the members of a union; the type itself if it is none."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, str | Path)


def _unread(word: str) -> str:
    """Returns what stands in `word` outside of YAML's tokens: a comment, which a value of one line has no use for."""
    rest, end = "", 0
    for token in yaml.scan(word, Loader=Loader):
        rest += word[end : token.start_mark.index]
        end = max(end, token.end_mark.index)
    return (rest + word[end:]).strip()


def _shown(word: str) -> str:
    return repr(word if len(word) <= 80 else word[:76] + " ...")
