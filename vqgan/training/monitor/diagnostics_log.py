"""Which of a task's findings are worth a line: the new ones, and now and then those that persist."""

import re
from collections.abc import Iterable, Mapping

_LINES_BETWEEN_REMINDERS = 20
"""Log lines after which a finding that persists is told again: often enough to be seen, rarely enough to be read."""


_NUMBER = r"-?(\b(nan|inf)\b|\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?)"


class Diagnostics:
    """Remembers what was told. A finding is its words: with another metric in it, it is still the same.

    The words are part of a checkpoint: they may come from the run alone, not from where its folder lies.
    """

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}

    def new_messages(self, findings: Iterable[str]) -> list[str]:
        """Those of a log line's findings that should be told now; one that is missing is forgotten."""
        current = {re.sub(_NUMBER, "#", finding): finding for finding in findings}
        self._lines = {words: self._lines.get(words, -1) + 1 for words in current}
        return [finding for words, finding in current.items() if self._lines[words] % _LINES_BETWEEN_REMINDERS == 0]

    def state_dict(self) -> dict[str, int]:
        return dict(self._lines)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._lines = dict(state)
