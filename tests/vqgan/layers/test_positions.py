"""Learned positions on other grids: a smooth field stays what it is, fine detail is averaged, all in fp32."""

import pytest
import torch

from vqgan.layers.positions import positions_on

pytestmark = pytest.mark.threads


def field(height: int, width: int) -> torch.Tensor:
    """Two numbers at each place, row-major: how far down and how far right its middle lies, in [0, 1]."""
    rows, columns = ((torch.arange(count) + 0.5) / count for count in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def test_the_learned_grid_keeps_its_positions() -> None:
    positions = field(3, 5)
    assert positions_on(positions, (3, 5), (3, 5)) is positions


@pytest.mark.parametrize("grid", [(12, 18), (6, 18), (12, 9), (24, 36), (7, 31)])
def test_a_smooth_field_is_the_same_on_any_grid(grid: tuple[int, int]) -> None:
    found = positions_on(field(12, 18), (12, 18), grid).unflatten(0, grid)
    inside = (slice(2, -2), slice(2, -2))  # at the border there is nothing to go on by
    torch.testing.assert_close(found[inside], field(*grid).unflatten(0, grid)[inside], rtol=0, atol=0.01)


def test_fine_detail_is_averaged_where_there_are_fewer_places() -> None:
    board = (torch.arange(12)[:, None] + torch.arange(18)).remainder(2).float().mul(2).sub(1).reshape(-1, 1)
    inside = positions_on(board, (12, 18), (4, 6)).view(4, 6)[1:-1, 1:-1]
    assert inside.abs().max() < 0.1


def test_lowered_positions_are_resized_in_fp32_whatever_the_autocast() -> None:
    low = torch.randn(12, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = positions_on(low.float(), (3, 4), (5, 5))
    assert torch.equal(positions_on(low, (3, 4), (5, 5)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(positions_on(low.float(), (3, 4), (5, 5)), expected)
