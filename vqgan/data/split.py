"""Splits a data set into training and validation items, by a choice that is stable when the data set grows."""

import hashlib

import numpy as np
from jaxtyping import Bool, Float, Int64

from vqgan.data.source import Split


def hash_score(key: str) -> float:
    """Returns a number in [0, 1) that depends on `key` alone, the same on every machine and in every release."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


def val(scores: Float[np.ndarray, "N"], share: float) -> Bool[np.ndarray, "N"]:
    """Returns the mask of validation items: those whose score in [0, 1) is below `share`, so a larger share only adds
    items.

    Of two items or more with different scores, each side gets at least one.
    """
    mask = scores < share
    if scores.size and scores.min() < scores.max():
        mask |= scores == scores.min()
        mask &= scores != scores.max()
    return mask


def items_of_split(scores: Float[np.ndarray, "N"], share: float, split: Split) -> Int64[np.ndarray, "M"]:
    """Returns the numbers of a split's items: training items in their own order, validation ones in a random one
    (`by_score`)."""
    mask = val(scores, share)
    if split == "train":
        return np.flatnonzero(~mask)
    numbers = np.flatnonzero(mask)
    return numbers[by_score(scores[numbers])]


def by_score(scores: Float[np.ndarray, "N"]) -> Int64[np.ndarray, "N"]:
    """Returns the numbers of items in order of their scores: a random order that stays as the data set grows.

    Every validation split comes so, that of a folder, file or shard of its own too: limited evaluations and previews
    take its first items, which would be of the first classes alone where a data set is sorted by kind.
    """
    return np.argsort(scores, kind="stable")


def position_scores(count: int) -> Float[np.ndarray, "N"]:
    """Returns scores of `count` items that have no names, by their position: more items leave the earlier ones' as they
    are."""
    return np.random.default_rng(0).random(count)
