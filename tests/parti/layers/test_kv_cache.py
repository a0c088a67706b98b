"""Caches hold what later states read and no more: against the masks, for positions as numbers and as tensors."""

import pytest
import torch

from parti.layers.kv_cache import CacheLayout, KeyValueCache
from parti.layers.sparse_masks import MaskKind, image_mask

pytestmark = pytest.mark.threads

KINDS: list[MaskKind] = ["row", "column", "convolution", "full"]
GRIDS = [(8, 8), (3, 7), (7, 3), (1, 6), (6, 1), (32, 32)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", [1, 5, 11])
def test_a_state_reads_exactly_the_states_of_its_mask(kind: MaskKind, grid: tuple[int, int], kernel: int) -> None:
    mask = image_mask(kind, grid, kernel)
    layout = CacheLayout(kind, grid, kernel, CPU)
    slots, biases = layout.tables()
    holds = torch.full((layout.slots,), -1)
    for state in range(len(mask)):
        assert layout.slot(state) == slots[state]
        holds[layout.slot(state)] = state
        expected = mask[state].nonzero()[:, 0]
        run, bias = layout.run(state)
        read = holds[run] if bias is None else holds[run][bias == 0]
        assert torch.equal(read.sort().values, expected), state
        assert torch.equal(holds[biases[state] == 0].sort().values, expected), state


@pytest.mark.parametrize(("kind", "slots"), [("row", 33), ("column", 1024), ("convolution", 166), ("full", 1024)])
def test_slots_of_the_papers_grid(kind: MaskKind, slots: int) -> None:
    layout = CacheLayout(kind, (32, 32), 11, CPU)
    assert layout.slots == slots
    assert KeyValueCache(layout, 3, 2, torch.zeros(5)).both.shape == (2, 3, 2, slots, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read_by_number_and_by_tensor(kind: MaskKind) -> None:
    layout, mask = CacheLayout(kind, (5, 4), 3, CPU), image_mask(kind, (5, 4), 3)
    written = torch.randn(20, 2, 3, 2, 6)  # of each state its keys and values (2, B, H, d)
    by_number, by_tensor = (KeyValueCache(layout, 3, 2, written) for _ in range(2))
    for state in range(20):
        by_number.write(state, written[state])
        by_tensor.write(torch.tensor(state), written[state])
        expected = {tuple(row) for row in written[mask[state], 0, 1, 1].tolist()}
        for cache, position in ((by_number, state), (by_tensor, torch.tensor(state))):
            keys, values, bias = cache.read(position)
            counts = torch.ones(keys.shape[2], dtype=torch.bool) if bias is None else bias == 0
            assert {tuple(row) for row in keys[1, 1, counts].tolist()} == expected
            assert len(values[1, 1, counts]) == len(expected)
