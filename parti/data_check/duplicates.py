"""Finds exact and near duplicates among the images of a data set.

Exact duplicates have the same size and pixels. Near duplicates (saved again as JPEG, resized, slightly brightened) have
nearly the same thumbnail: candidates are neighbors in the thumbnails' first principal components, whose distances are
lower bounds of those of the thumbnails, so none is missed; each pair is then compared in full. Crops are not found.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree

from parti.data_check.scan import ImageStats

MOST_IMAGES = 500_000
"""Largest number of images that are searched for near duplicates: 0.5 GB of thumbnails."""
_MOST_CANDIDATES = 20_000_000
_COMPONENTS = 10
_ALIKE = 2.0
"""Largest root mean squared difference of the thumbnails of near duplicates, of 255."""
_ALIKE_ANYWHERE = 8
"""Largest difference at any pixel: a small mark on an otherwise equal image is a difference."""


def exact_duplicates(stats: Sequence[ImageStats]) -> list[list[int]]:
    """Returns the numbers of items with the same pixels: lists of two or more."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, look in enumerate(stats):
        groups[look.fingerprint].append(number)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(stats: Sequence[ImageStats]) -> list[tuple[int, int]] | None:
    """Returns pairs of near duplicates; the first of exact duplicates represents them all. None if there are too
    many."""
    firsts = list({look.fingerprint: number for number, look in reversed(list(enumerate(stats)))}.values())[::-1]
    if len(firsts) > MOST_IMAGES:
        return None
    if len(firsts) < 2:
        return []
    thumbnails = np.stack([stats[number].thumbnail for number in firsts]).reshape(len(firsts), -1)
    tree = cKDTree(_principal_components(thumbnails))
    radius = _ALIKE * np.sqrt(thumbnails.shape[1])
    if tree.count_neighbors(tree, radius) > _MOST_CANDIDATES:
        return None
    pairs = tree.query_pairs(radius, output_type="ndarray")
    alike = [pair for chunk in _chunks(pairs) for pair in chunk[_are_alike(thumbnails, chunk)].tolist()]
    return sorted((firsts[one], firsts[other]) for one, other in alike)


def _principal_components(thumbnails: UInt8[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
    mean = thumbnails.mean(0)
    # From a subset: any orthonormal directions work, these separate the images best.
    part = thumbnails[:: max(1, len(thumbnails) // 20_000)] - mean
    directions = np.linalg.eigh(part.T @ part)[1][:, -_COMPONENTS:]
    return np.concatenate([(chunk - mean) @ directions for chunk in _chunks(thumbnails)])


def _are_alike(thumbnails: UInt8[np.ndarray, "N D"], pairs: np.ndarray) -> np.ndarray:
    difference = thumbnails[pairs[:, 0]].astype(np.float32) - thumbnails[pairs[:, 1]]
    return (np.sqrt((difference**2).mean(1)) <= _ALIKE) & (np.abs(difference).max(1) <= _ALIKE_ANYWHERE)


def _chunks(rows: np.ndarray, size: int = 50_000) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
