"""Which parts of a tokenizer file are used: those of published text models.

The `tokenizers` library has others, for speech or for experiments, which may end the process's work with a panic of
its own (a fixed length of 0), and later versions will have more. Whatever is not named here is refused.
"""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

_ALLOWED: dict[str, set[str]] = {
    "normalizer": {
        *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
        *("Replace", "Sequence", "Strip", "StripAccents"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split"),
        *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
    },
    "model": {"BPE", "Unigram", "WordLevel", "WordPiece"},
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
    "decoder": {
        *("BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Sequence", "Strip", "WordPiece"),
    },
}
_PARTS_OF_SEQUENCE = ("normalizers", "pretokenizers", "processors", "decoders")
_PROBE = "".join(map(chr, range(32, 1024))) + " A cat. 12\n\t\u4e2d\u6587 \u2028\ufb01\U0001f642 "
"""A text with letters of many kinds: what a damaged table makes of them shows when a tokenizer is loaded."""


def check_components(rules: Any) -> None:
    """Raises ValueError if a tokenizer's JSON has a part of a type that is not known here."""
    if not isinstance(rules, dict):
        raise ValueError("it is no tokenizer of the tokenizers library")
    for part, allowed in _ALLOWED.items():
        for kind in _types(rules.get(part)):
            if part == "model" and kind is None:  # files of early versions name no type
                continue
            if not isinstance(kind, str) or kind not in allowed:
                raise ValueError(f"its {part} is of type {str(kind)[:80]!r}, known are {', '.join(sorted(allowed))}")


def check_runs(tokenizer: Tokenizer) -> None:
    """Raises ValueError if the tokenizer fails at a text of many kinds of letters; the library panics at damaged
    tables."""
    try:
        tokenizer.decode(tokenizer.encode(_PROBE).ids)
    except BaseException as error:
        if isinstance(error, Exception) or is_panic(error):
            raise ValueError(f"it fails at a text: {' '.join(str(error).split())[:200]}") from None
        raise


def is_panic(error: BaseException) -> bool:
    """Returns whether the library itself broke off: such an error is no Exception."""
    return type(error).__name__ == "PanicException"


def check_file(content: bytes | str) -> None:
    """Raises ValueError if the content of a tokenizer file is no JSON, or has parts that are not known here."""
    try:
        rules = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_components(rules)


def _types(part: Any) -> Iterator[Any]:
    """Yields the type of a part, and of all parts of a sequence."""
    waiting = [] if part is None else [part]
    while waiting:
        node = waiting.pop()
        yield node.get("type") if isinstance(node, dict) else node
        for name in _PARTS_OF_SEQUENCE:
            inside = node.get(name) if isinstance(node, dict) else None
            waiting.extend(inside if isinstance(inside, list) else [])
