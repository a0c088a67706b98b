"""Index of a tar shard: built once from its headers, stored in the user's cache folder.

It holds every member, so it serves whatever endings a run asks for.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from tqdm import tqdm

from vqgan.data.shards.index_cache import Arrays, file_version_key, read_cached, write_cached
from vqgan.data.shards.passed_over import PassedOver
from vqgan.data.shards.remote import LocalFile, RemoteError
from vqgan.data.shards.tar import BrokenTarError, Group, Member, groups, members
from vqgan.data.split import hash_score

_SCANNERS = 4


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, numbered as they lie in it."""

    keys: list[str]
    """By sample: WebDataset's key."""
    scores: Float[np.ndarray, "N"]
    """By sample: the key's hash in [0, 1), which assigns samples to the validation split."""
    owners: Int64[np.ndarray, "M"]
    """By member: the sample that it belongs to."""
    endings: list[str]
    """By member: its ending, lower case."""
    places: Int64[np.ndarray, "M 2"]
    """By member: offset and size in bytes."""
    refused: dict[int, str]
    """By sample, of some: why it may not be used."""
    broken: str | None
    """Why the shard could not be read to its end."""
    passed: PassedOver
    """What is in it and part of no sample."""

    def members(self, endings: Sequence[str]) -> Int64[np.ndarray, "N 2"]:
        """By sample: offset and size of its member with the first of `endings` that it has, or size -1."""
        found = np.full((len(self.keys), 2), -1, dtype=np.int64)
        present = np.array(self.endings, dtype=np.str_)
        for ending in reversed(endings):
            chosen = np.flatnonzero(present == ending)
            found[self.owners[chosen]] = self.places[chosen]
        return found


def read_indexes(paths: Sequence[str]) -> Iterator[ShardIndex]:
    """Yields the indexes of local shards, scanned where they are not known yet."""
    with ThreadPoolExecutor(_SCANNERS) as pool:
        # A bar only on a terminal, and only where it takes long enough to wonder.
        yield from tqdm(pool.map(read_index, paths), "reading shards", len(paths), disable=None, delay=3, leave=False)


def read_index(path: str) -> ShardIndex:
    """Returns the index of one local shard."""
    arrays = read_cached("index", path, lambda: file_version_key(path))
    if arrays is not None:
        with suppress(KeyError, ValueError, TypeError):
            return _from_arrays(arrays)
    version_key = file_version_key(path)
    index = _scanned(path)
    if version_key == file_version_key(path):
        write_cached("index", path, version_key, _to_arrays(index))
    return index


def _scanned(path: str) -> ShardIndex:
    found: list[Group[Member]] = []
    broken = None
    passed = PassedOver()
    try:
        with LocalFile(path) as file:
            for group in groups(members(file, passed), lambda _: True, lambda _, member: member, passed):
                found.append(group)  # one by one: those before a break are kept
    except (BrokenTarError, RemoteError) as error:
        broken = str(error)
    parts = [(number, *part) for number, group in enumerate(found) for part in group.parts.items()]
    return ShardIndex(
        [group.key for group in found],
        np.array([hash_score(group.key) for group in found], dtype=np.float64),
        np.array([number for number, _, _ in parts], dtype=np.int64),
        [ending for _, ending, _ in parts],
        np.array([(member.offset, member.size) for _, _, member in parts], dtype=np.int64).reshape(-1, 2),
        {number: group.refused for number, group in enumerate(found) if group.refused},
        broken,
        passed,
    )


def _to_arrays(index: ShardIndex) -> Arrays:
    endings = sorted(set(index.endings))
    numbers = {ending: number for number, ending in enumerate(endings)}
    notes: dict[str, Any] = {"keys": index.keys, "endings": endings, "refused": index.refused, "broken": index.broken}
    notes["passed"] = asdict(index.passed)
    return {
        "notes": np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8),
        "scores": index.scores,
        "owners": index.owners,
        "endings": np.array([numbers[ending] for ending in index.endings], dtype=np.int32),
        "places": index.places,
    }


def _from_arrays(arrays: Arrays) -> ShardIndex:
    notes = json.loads(arrays["notes"].tobytes())
    return ShardIndex(
        notes["keys"],
        arrays["scores"],
        arrays["owners"],
        [notes["endings"][number] for number in arrays["endings"]],
        arrays["places"],
        {int(number): cause for number, cause in notes["refused"].items()},
        notes["broken"],
        PassedOver(**notes["passed"]),
    )
