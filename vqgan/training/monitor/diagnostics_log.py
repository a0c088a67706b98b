"""Selects the findings of a task to log: new ones, and persistent ones now and then."""

import re
from collections.abc import Iterable, Mapping

_LINES_BETWEEN_REMINDERS = 20
"""Log lines after which a persistent finding is logged again."""


_NUMBER = r"-?(\b(nan|inf)\b|\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?)"


class Diagnostics:
    """Remembers logged findings. A finding is identified by its words, without the numbers in it.

    The words are part of a checkpoint: they may come from the run alone, not from where its folder lies.
    """

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}

    def new_messages(self, findings: Iterable[str]) -> list[str]:
        """Returns the findings of a log line to log now; a finding that no longer occurs is forgotten."""
        current = {re.sub(_NUMBER, "#", finding): finding for finding in findings}
        self._lines = {words: self._lines.get(words, -1) + 1 for words in current}
        return [finding for words, finding in current.items() if self._lines[words] % _LINES_BETWEEN_REMINDERS == 0]

    def state_dict(self) -> dict[str, int]:
        return dict(self._lines)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._lines = dict(state)
