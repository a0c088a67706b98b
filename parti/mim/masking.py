"""Which patches of an image are masked, as each paper draws them.

Every function draws one image's mask from the generator that it is given, so that a mask is a function of that
image's seed alone (`row_generator`): not of the batch, nor of how the batch is divided between processes.

Legend: h w the grid of patches, N = h * w patches row by row, T frames.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

Grid = tuple[int, int]

_ATTEMPTS = 10
"""Blocks that are tried in a round, before the mask stays as it is (BEiT's masking generator)."""


def row_generator(seed: int, step: int, row: int) -> np.random.Generator:
    """What draws the mask of row `row` of the global batch of a training step."""
    return np.random.default_rng((seed, step, row))


def name_generator(seed: int, name: str) -> np.random.Generator:
    """What draws the mask of a validation image: the same at every evaluation, whatever batch the image is in."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def kept_patches(count: int, ratio: float) -> int:
    """How many of `count` patches stay visible when `ratio` of them is masked: the share, rounded down."""
    return int(round(count * (1 - ratio), 6))


def random_mask(count: int, ratio: float, rng: np.random.Generator) -> Bool[np.ndarray, "N"]:
    """MAE (arXiv 2111.06377, section 3): all but `kept_patches` of `count`, uniform without replacement."""
    mask = np.ones(count, np.bool_)
    mask[rng.permutation(count)[: kept_patches(count, ratio)]] = False
    return mask


def block_mask(
    grid: Grid, total: int, rng: np.random.Generator, *, smallest: int = 16, least_aspect: float = 0.3
) -> Bool[np.ndarray, "h w"]:
    """BEiT (arXiv 2106.08254, algorithm 1): rectangles of at least `smallest` patches until `total` are masked.

    As in the published generator a mask may have fewer: a block is taken only if it adds one patch or more and does
    not exceed the total, and a round of ten blocks of which none is taken ends the mask. A block never spans the grid.
    """
    height, width = grid
    mask = np.zeros(grid, np.bool_)
    while (remaining := total - int(mask.sum())) > 0:
        for _ in range(_ATTEMPTS):
            area = smallest + (remaining - smallest) * rng.random()  # the ends change places where fewer remain
            aspect = math.exp(rng.uniform(math.log(least_aspect), -math.log(least_aspect)))
            block_height, block_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if block_height >= height or block_width >= width:
                continue
            top = int(rng.integers(height - block_height + 1))
            left = int(rng.integers(width - block_width + 1))
            block = mask[top : top + block_height, left : left + block_width]
            if 0 < block.size - int(block.sum()) <= remaining:
                block[:] = True
                break
        else:
            break
    return mask


def masked_units(count: int, ratio: float) -> int:
    """How many of `count` units are masked: the share, rounded up."""
    return math.ceil(round(count * ratio, 6))


def unit_mask(grid: Grid, unit: int, ratio: float, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """SimMIM (arXiv 2111.09886, section 3.2): squares of `unit` x `unit` patches, `masked_units` of them.

    Raises ValueError where the grid does not divide into units.
    """
    height, width = grid
    if height % unit or width % unit:
        raise ValueError(f"a grid of {height}x{width} patches does not divide into units of {unit}; change mask_size")
    rows, columns = height // unit, width // unit
    units = np.zeros(rows * columns, np.bool_)
    units[rng.permutation(units.size)[: masked_units(units.size, ratio)]] = True
    return units.reshape(rows, columns).repeat(unit, 0).repeat(unit, 1)


class Corruption(NamedTuple):
    """Of each patch: `chosen`, is it predicted; `hidden`, does [mask] stand for it; `source`, whose embedding is in
    its place otherwise (its own, but for those that were replaced)."""

    chosen: Bool[np.ndarray, "N"]
    hidden: Bool[np.ndarray, "N"]
    source: Int64[np.ndarray, "N"]


def corruption(
    count: int, rng: np.random.Generator, *, chosen: float = 0.5, hidden: float = 0.8, replaced: float = 0.1
) -> Corruption:
    """ViT (arXiv 2010.11929, appendix B.1.2): half of the patches, of these 80% [mask], 10% another patch's, 10% kept.

    How many are chosen is exact, what becomes of each is drawn for itself. Another patch is one of the same image, and
    never the patch itself.
    """
    places = np.arange(count)
    is_chosen = np.zeros(count, np.bool_)
    is_chosen[rng.permutation(count)[: round(chosen * count)]] = True
    fate = rng.random(count)
    others = (places + 1 + rng.integers(count - 1, size=count)) % count
    is_replaced = is_chosen & (fate >= hidden) & (fate < hidden + replaced)
    return Corruption(is_chosen, is_chosen & (fate < hidden), np.where(is_replaced, others, places))


def tube_mask(
    mask: Bool[np.ndarray, "h w"], frames: int, rng: np.random.Generator, *, shortest: float = 0.5
) -> Bool[np.ndarray, "T h w"]:
    """BEVT (arXiv 2112.01529, section 3.2): one mask through consecutive frames, at least `shortest` of them.

    The tube begins at any frame and goes on at the first when it has passed the last; other frames are unmasked.
    """
    length = int(rng.integers(math.ceil(shortest * frames), frames + 1))
    start = int(rng.integers(frames))
    tube = np.zeros((frames, *mask.shape), np.bool_)
    tube[(start + np.arange(length)) % frames] = mask
    return tube


def ibot_ratio(
    rng: np.random.Generator, *, ratios: tuple[float, ...] = (0.0, 0.3), spread: tuple[float, ...] = (0.0, 0.2)
) -> float:
    """iBOT (arXiv 2111.07832, section 4.1): half of the views are whole, the others have U(.1, .5) masked."""
    choice = int(rng.integers(len(ratios)))
    return float(ratios[choice] + spread[choice] * rng.uniform(-1, 1))
