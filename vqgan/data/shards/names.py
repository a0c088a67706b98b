"""Which shards `path` and `paths` name: braces, globs, folders, local or behind an address."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from vqgan.data.source import DataError

_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_SHARDS = 1_000_000


def find_shards(patterns: Sequence[str]) -> list[str]:
    """Returns the shards in the order in which they are named, those of a glob or a folder by name.

    Raises DataError where a pattern names none, or a shard is named twice or does not exist.
    """
    shards = [shard for pattern in patterns for shard in _find(pattern)]
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise DataError(f"shard {twice!r} is named twice: its samples would count twice; name it once")
    local = [Path(shard) for shard in shards if not is_address(shard)]
    if missing := [shard for shard in local if not shard.exists()]:
        raise DataError(
            f"{len(missing)} of {len(shards)} shards do not exist, the first: {str(missing[0])!r}; check path and its "
            "braces"
        )
    if odd := [shard for shard in local if not shard.is_file()]:
        raise DataError(f"shard {str(odd[0])!r} is a folder, a pipe or a device, not a tar file; check path")
    return shards


def is_address(shard: str) -> bool:
    """Returns whether a shard lies behind an address (http://, s3://, ...) rather than in a file."""
    return "://" in shard


def short_name(shard: str) -> str:
    """Returns what reports call a shard: the last part of its path or address."""
    return PurePosixPath(shard.partition("?")[0]).name or shard


def expand_braces(pattern: str) -> Iterator[str]:
    """`a-{000..127}.tar` and `{train,more}/a.tar` as the names that they stand for, as a shell does.

    Raises DataError for braces that mean nothing, or too much.
    """
    names = [pattern]
    while any(_INNERMOST_BRACES.search(name) for name in names):
        # The innermost first, so the same name may come about twice: {a,b{1,2}} by way of {a,b1} and {a,b2}.
        names = list(dict.fromkeys(wider for name in names for wider in _expand_first(name)))
        if len(names) > _MOST_SHARDS:
            raise DataError(f"{pattern!r} stands for more than {_MOST_SHARDS:,} shards; check its braces")
    yield from names


def _expand_first(name: str) -> list[str]:
    match = _INNERMOST_BRACES.search(name)
    if match is None:
        return [name]
    if numbers := _RANGE.match(match[1]):
        first, last = numbers.groups()
        if int(last) < int(first) or int(last) - int(first) >= _MOST_SHARDS:
            raise DataError(f"{name!r}: {{{match[1]}}} names no shard or too many; write {{000..127}}")
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise DataError(f"{name!r}: {{{match[1]}}} is neither a range as in {{000..127}} nor a list as in {{a,b}}")
    return [name[: match.start()] + choice + name[match.end() :] for choice in choices]


def _find(pattern: str) -> list[str]:
    found: list[str] = []
    if is_address(pattern):
        for name in expand_braces(pattern):
            found += _find_remote(name)
    else:
        # What exists means itself: a folder may be called "set [v2]".
        folder, rest = _existing_part(Path(pattern).expanduser())
        for name in expand_braces(rest):
            found += _find_below(folder, name)
    if not found:
        raise DataError(f"no shard at {pattern!r}; give a tar file, a folder of them, a glob or braces {{000..127}}")
    return found


def _existing_part(path: Path) -> tuple[Path, str]:
    """Returns the longest part of a path from its beginning that exists, and what is left, which may be a pattern."""
    for place in (path, *path.parents):
        with suppress(OSError, ValueError):
            if place.exists():
                return place, str(path.relative_to(place)) if place != path else ""
    return Path(), str(path)


def _find_below(folder: Path, name: str) -> list[str]:
    path = folder / name
    if path.is_dir():
        folder, name = path, "*.tar"
    if not any(sign in name for sign in "*?["):
        return [str(path)]
    pattern = str(Path(glob.escape(str(folder))) / name)
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob would also find hidden files


def _find_remote(name: str) -> list[str]:
    if not any(sign in name for sign in "*["):
        return [name]
    protocol = name.split("://")[0]
    if protocol in ("http", "https"):
        raise DataError(f"{name!r}: a web server does not list its files; name the shards with braces {{000..127}}")
    import fsspec  # type: ignore[import-untyped]

    try:
        system, path = fsspec.core.url_to_fs(name)
        return sorted(f"{protocol}://{found}" for found in system.glob(path))
    except Exception as error:  # every protocol raises its own kinds
        raise DataError(f"{name!r} cannot be listed: {' '.join(str(error).split())}") from None
