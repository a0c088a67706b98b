"""Masks as the papers draw them: exact counts, bounds of what is drawn, and loops that say the same."""

import math
import random

import numpy as np
import pytest
from transformers.models.flava.image_processing_pil_flava import FlavaMaskingGenerator

from parti.mim.masking import (
    block_mask,
    corruption,
    ibot_ratio,
    kept_patches,
    masked_units,
    name_generator,
    random_mask,
    row_generator,
    tube_mask,
    unit_mask,
)


def test_a_mask_is_a_function_of_its_row_alone() -> None:
    first = random_mask(64, 0.75, row_generator(3, 10, 5))
    assert np.array_equal(first, random_mask(64, 0.75, row_generator(3, 10, 5)))
    for other in (row_generator(4, 10, 5), row_generator(3, 11, 5), row_generator(3, 10, 6)):
        assert not np.array_equal(first, random_mask(64, 0.75, other))
    assert np.array_equal(random_mask(64, 0.75, name_generator(0, "a")), random_mask(64, 0.75, name_generator(0, "a")))
    assert not np.array_equal(
        random_mask(64, 0.75, name_generator(0, "a")), random_mask(64, 0.75, name_generator(0, "b"))
    )


@pytest.mark.parametrize(
    ("count", "ratio", "kept"), [(196, 0.75, 49), (256, 0.75, 64), (64, 0.75, 16), (10, 0.9, 1), (100, 0.7, 30)]
)
def test_mae_keeps_the_share_rounded_down(count: int, ratio: float, kept: int) -> None:
    assert kept_patches(count, ratio) == kept
    assert (~random_mask(count, ratio, row_generator(0, 0, 0))).sum() == kept


def test_mae_masks_every_place_alike() -> None:
    draws = 2000
    share = np.mean([random_mask(64, 0.75, row_generator(0, 0, row)) for row in range(draws)], 0)
    # 64 places, each a binomial of 2000: five standard deviations.
    assert np.abs(share - 0.75).max() < 5 * math.sqrt(0.75 * 0.25 / draws)


def test_beits_blocks_are_those_of_the_published_generator() -> None:
    draws = 600
    ours = np.array([block_mask((14, 14), 75, row_generator(0, 0, row)).sum() for row in range(draws)])
    random.seed(0)
    published = FlavaMaskingGenerator(14, 75)
    theirs = np.array([published().sum() for _ in range(draws)])
    assert ours.max() == theirs.max() == 75, "never more than the total"
    assert (ours < 75).mean() > 0.1, "it under-fills, as the published one does"
    spread = math.sqrt((ours.var() + theirs.var()) / draws)
    assert abs(ours.mean() - theirs.mean()) < 4 * spread
    assert abs((ours == 75).mean() - (theirs == 75).mean()) < 4 * math.sqrt(0.5 / draws)


def test_beits_blocks_are_blocks() -> None:
    """Far more masked neighbors than patches masked one by one have."""
    draws = 100

    def neighbors(mask: np.ndarray) -> float:
        return float((mask[1:] & mask[:-1]).sum() / mask.sum())

    blocks = np.mean([neighbors(block_mask((14, 14), 75, row_generator(0, 0, row))) for row in range(draws)])
    singles = np.mean(
        [neighbors(random_mask(196, 0.383, row_generator(0, 0, row)).reshape(14, 14)) for row in range(draws)]
    )
    assert singles < 0.5
    assert blocks > 0.65


def test_blocks_on_a_small_grid_under_fill_and_are_never_empty() -> None:
    counts = np.array([block_mask((8, 8), 25, row_generator(0, 0, row), smallest=4).sum() for row in range(1000)])
    assert counts.max() == 25
    assert counts.min() >= 1
    assert 20 < counts.mean() < 25


def test_a_grid_too_small_for_any_block_ends() -> None:
    assert block_mask((2, 2), 3, row_generator(0, 0, 0)).sum() == 0


@pytest.mark.parametrize(("units", "masked"), [(36, 22), (49, 30), (16, 10), (25, 15), (10, 6)])
def test_simmims_units_are_counted_up(units: int, masked: int) -> None:
    assert masked_units(units, 0.6) == masked


def test_simmims_units_hide_whole_squares() -> None:
    mask = unit_mask((48, 48), 8, 0.6, row_generator(0, 0, 0))
    assert mask.sum() == 22 * 64
    for top in range(0, 48, 8):
        for left in range(0, 48, 8):
            assert mask[top : top + 8, left : left + 8].sum() in (0, 64)
    with pytest.raises(ValueError, match="48x48 patches does not divide into units of 7; change mask_size"):
        unit_mask((48, 48), 7, 0.6, row_generator(0, 0, 0))


def test_corruption_counts() -> None:
    rows, count = 400, 64
    drawn = [corruption(count, row_generator(1, 2, row)) for row in range(rows)]
    chosen = rows * count // 2
    assert all(one.chosen.sum() == count // 2 for one in drawn)
    hidden = sum(int(one.hidden.sum()) for one in drawn)
    replaced = sum(int((one.source != np.arange(count)).sum()) for one in drawn)
    kept = chosen - hidden - replaced
    for seen, share in ((hidden, 0.8), (replaced, 0.1), (kept, 0.1)):
        assert abs(seen - share * chosen) < 5 * math.sqrt(share * (1 - share) * chosen)
    for one in drawn:
        moved = one.source != np.arange(count)
        assert not (one.hidden & ~one.chosen).any()
        assert not (moved & (one.hidden | ~one.chosen)).any(), "a replaced patch is chosen, and not [mask]"


def test_a_replaced_patch_comes_from_anywhere_else() -> None:
    counts = np.zeros((8, 8))
    for row in range(4000):
        source = corruption(8, row_generator(0, 0, row), chosen=1.0, hidden=0.0, replaced=1.0).source
        counts[np.arange(8), source] += 1
    assert (counts.diagonal() == 0).all()
    others = counts[~np.eye(8, dtype=bool)] / 4000
    assert np.abs(others - 1 / 7).max() < 5 * math.sqrt(1 / 7 * 6 / 7 / 4000)


def test_tubes_are_one_mask_through_consecutive_frames() -> None:
    flat = block_mask((14, 14), 98, row_generator(0, 0, 0))
    lengths, wrapped = [], 0
    for row in range(400):
        tube = tube_mask(flat, 8, row_generator(0, 1, row))
        inside = [bool(frame.any()) for frame in tube]
        for frame, there in zip(tube, inside, strict=True):
            assert np.array_equal(frame, flat if there else np.zeros_like(flat))
        lengths.append(sum(inside))
        # Consecutive, the first frame following the last: it begins at most once.
        assert sum(there and not inside[at - 1] for at, there in enumerate(inside)) <= 1
        wrapped += inside[0] and inside[-1] and not all(inside)
    assert set(lengths) == {4, 5, 6, 7, 8}
    assert wrapped > 0
    counts = np.bincount(lengths)[4:]
    assert np.abs(counts / 400 - 0.2).max() < 5 * math.sqrt(0.2 * 0.8 / 400)


def test_ibot_masks_half_of_the_views() -> None:
    ratios = np.array([ibot_ratio(row_generator(0, 0, row)) for row in range(2000)])
    assert abs((ratios == 0).mean() - 0.5) < 5 * math.sqrt(0.25 / 2000)
    masked = ratios[ratios > 0]
    assert masked.min() >= 0.1
    assert masked.max() <= 0.5
    assert abs(masked.mean() - 0.3) < 0.02
