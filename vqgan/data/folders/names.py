"""Names that mean the same file on another system: written with other separators, composed otherwise, in other case."""

import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """Returns the same name with every accent in its letter (NFC): macOS keeps them apart, all others together."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class NameIndex:
    """Finds a name as it is, or else the only one that differs in composition or case alone."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._alike: dict[str, str | None] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def find(self, name: str) -> str | None:
        """Returns the name that is meant; None where there is none, or several differ alike."""
        if name in self._names:
            return name
        if self._alike is None:  # seldom needed, and as large as the names themselves
            self._alike = {}
            for other in self._names:
                key = _key(other)
                self._alike[key] = None if key in self._alike else other
        return self._alike.get(_key(name))


def _key(name: str) -> str:
    return composed(composed(name).casefold())
