"""Limits how much the rules of a tokenizer file may lengthen a text.

A tokenizer file holds rules that rewrite text before tokenization and after decoding: forty rules that each double a
letter turn one caption into a terabyte. Published vocabularies replace a character by one or two.
"""

import json
from typing import Any

LONGEST = 100_000
"""Largest number of text positions: every caption is padded to it."""
_MOST_GROWTH, _MOST_TOKENS = 64.0, 64
"""Limits: factor by which rules may lengthen a text; special tokens around it."""


def check_growth(tokenizer: str, length: int) -> None:
    """Raises ValueError if the rules of a tokenizer's JSON could make a short text very long."""
    if not 0 < length <= LONGEST:
        raise ValueError(f"its text has {length} positions, 1 to {LONGEST} are possible")
    rules = json.loads(tokenizer)
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        growth, tokens = 1.0, 0
        for node in _nodes(rules.get(part)):
            growth *= max(1.0, _growth_of(node))
            tokens += len(node.get("single") or []) if node.get("type") == "TemplateProcessing" else 0
        if growth > _MOST_GROWTH or tokens > _MOST_TOKENS:
            raise ValueError(f"the rules of its {part} make a text more than {_MOST_GROWTH:.0f} times as long")


def _growth_of(node: dict[str, Any]) -> float:
    content = node.get("content", node.get("prepend", ""))
    if node.get("type") not in ("Replace", "Prepend") or not isinstance(content, str):
        return 1.0
    pattern = node.get("pattern")
    plain = pattern.get("String") if isinstance(pattern, dict) else None
    # An empty pattern, or a regular expression that matches the empty string, matches between all characters.
    return len(content) / len(plain) if plain else len(content) + (0.0 if node["type"] == "Prepend" else 1.0)


def _nodes(node: Any) -> list[dict[str, Any]]:
    """All mappings in it."""
    found, waiting = [], [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            found.append(node)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found
