"""Rotary positions: scores of distances alone, lengths kept, fp32, and a cached step equal to the whole."""

import pytest
import torch
from torch import Tensor

from parti.layers.rotary import RotaryPositions

GRID = (4, 5)


def states(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, count, width, generator=torch.Generator().manual_seed(seed))


def test_angles_are_those_of_the_formula() -> None:
    """Component pair i of the row turns by row * 10000^(-i / (d / 4)), of the column by the column."""
    rotary = RotaryPositions(GRID, head_width=8)
    x = torch.zeros(1, 1, 20, 8)
    x[..., :4] = 1  # the first members of the four pairs: rows at 0 and 1, columns at 2 and 3
    turned = rotary.rotate(x)[0, 0]
    for state in range(20):
        row, column = divmod(state, 5)
        angles = torch.tensor([row, row / 100, column, column / 100])
        torch.testing.assert_close(turned[state], torch.cat([angles.cos(), angles.sin()]))


def test_frequencies_of_wider_heads_lie_closer() -> None:
    """Of 16 components four pairs turn by the row: by row * 10000^(-i / 4)."""
    angles = torch.tensor([1.0, 0.1, 0.01, 0.001])
    rotary = RotaryPositions(GRID, head_width=16)
    torch.testing.assert_close(rotary.cos[5], torch.cat([angles.cos(), torch.ones(4)]), msg="row 1, column 0")
    torch.testing.assert_close(rotary.sin[1], torch.cat([torch.zeros(4), angles.sin()]), msg="row 0, column 1")


def test_scores_depend_on_differences_of_rows_and_columns_alone() -> None:
    rotary = RotaryPositions(GRID, head_width=16)
    query, key = states(1), states(1, seed=1)
    scores = rotary.rotate(query.expand(2, 3, 20, 16)) @ rotary.rotate(key.expand(2, 3, 20, 16)).transpose(-1, -2)
    by_difference: dict[tuple[int, int], Tensor] = {}
    for i in range(20):
        for j in range(20):
            difference = (i // 5 - j // 5, i % 5 - j % 5)
            score = by_difference.setdefault(difference, scores[:, :, i, j])
            torch.testing.assert_close(scores[:, :, i, j], score, atol=1e-4, rtol=1e-4)
    assert len(by_difference) == 7 * 9
    different = torch.stack(list(by_difference.values())).flatten(1)
    assert torch.cdist(different, different).add(torch.eye(63) * 9).min() > 1e-3, "two differences look alike"


def test_lengths_are_kept() -> None:
    x = states(20)
    turned = RotaryPositions(GRID, head_width=16).rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0]), "the first state stands at angle 0"


def test_text_is_left_as_it_is_and_the_image_turns_as_without_text() -> None:
    with_text = RotaryPositions(GRID, head_width=16, text_length=6)
    text, image = states(6), states(20, seed=1)
    turned = with_text.rotate(torch.cat([text, image], dim=2))
    assert torch.equal(turned[:, :, :6], text)
    assert torch.equal(turned[:, :, 6:], RotaryPositions(GRID, head_width=16).rotate(image))
    assert torch.equal(with_text.rotate(text), text), "text alone, as when a prompt is read"


@pytest.mark.parametrize("text_length", [0, 6])
def test_one_state_at_a_time_and_a_part_of_the_image_give_the_same_as_the_whole(text_length: int) -> None:
    rotary = RotaryPositions(GRID, head_width=16, text_length=text_length)
    x = states(text_length + 20)
    whole = rotary.rotate(x)
    for position in range(20):
        state = slice(text_length + position, text_length + position + 1)
        assert torch.equal(rotary.rotate(x[:, :, state], position), whole[:, :, state])
        assert torch.equal(rotary.rotate(x[:, :, state], torch.tensor(position)), whole[:, :, state])
        assert torch.equal(rotary.rotate(x[:, :, state.start], position), whole[:, :, state.start])
    assert torch.equal(rotary.rotate(x[:, :, : text_length + 7]), whole[:, :, : text_length + 7])


def test_fp32_inside_autocast_and_for_a_model_in_bf16() -> None:
    rotary = RotaryPositions((32, 32), head_width=16).to(torch.bfloat16)
    assert rotary.cos.dtype == rotary.sin.dtype == torch.float32
    x = states(1024).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        turned = rotary.rotate(x)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, RotaryPositions((32, 32), head_width=16).rotate(x.float()).bfloat16()), "rounded once"


def test_tables_are_no_weights_and_come_back_from_the_meta_device() -> None:
    with torch.device("meta"):
        rotary = RotaryPositions(GRID, head_width=16, text_length=2)
    assert rotary.state_dict() == {}
    assert rotary.cos.is_meta
    rotary.to_empty(device="cpu")
    assert torch.equal(rotary.cos, RotaryPositions(GRID, head_width=16, text_length=2).cos)


def test_a_head_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, received 6"):
        RotaryPositions(GRID, head_width=6)
