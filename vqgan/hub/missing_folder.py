"""A folder that is not there: whether its name was meant for a path at all, and what lies near it."""

import difflib
from itertools import islice
from pathlib import Path

_HERE = ("/", "./", "../", "~", "runs/", "out/")
"""What paths begin with: where this toolkit puts runs and models, if nothing else."""
_MOST = 1000
"""Entries of a folder that are compared with a name."""


def looks_local(name: str) -> bool:
    """Whether `name` is a path rather than a name on a hub (owner/name, or a word).

    It is where it begins like one, has more than one slash or a backslash, or where its first folder is here.
    """
    plain = name.partition("@")[0]
    if plain in ("", ".", "..") or plain.startswith(_HERE) or plain.endswith("/") or "\\" in plain:
        return True
    return plain.count("/") > 1 or ("/" in plain and Path(plain.partition("/")[0]).is_dir())


def no_such_folder(name: str) -> str:
    """`'runs/x' is no folder here; near ones: runs/xy`."""
    near = _near(Path(name).expanduser())
    return f"{name!r} is no folder here" + (f"; near ones: {', '.join(near)}" if near else "")


def _near(path: Path, most: int = 3) -> list[str]:
    """Folders that are here whose path differs from `path` in the spelling of one part."""
    try:
        for position, part in enumerate(path.parts):
            before = Path(*path.parts[:position])
            if (before / part).exists():
                continue
            beside = [entry.name for entry in islice(before.iterdir(), _MOST) if entry.is_dir()]
            found = [
                before.joinpath(name, *path.parts[position + 1 :])
                for name in difflib.get_close_matches(part, beside, most, 0.6)
            ]
            return [str(candidate) for candidate in found if candidate.is_dir()]
    except (OSError, ValueError):  # a part that is a file, a folder that may not be read, a name that no folder has
        pass
    return []
