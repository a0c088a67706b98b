"""Key-value cache of image states, which stores them only as long as later states attend to them.

Every mask of `parti.layers.sparse_masks` but one is a sliding window, so a ring buffer of the window's width suffices:
33 slots for a row of 32 codes, 166 for a kernel of 11 (papers.md D.2). Columns are stored one after the other. Either
way a state attends to one contiguous run of slots: nothing is gathered or copied.

Positions may be Python numbers (a slice of the slots is read) or tensors (all slots are read and masked: every step has
the same shapes, as a CUDA graph needs).

Legend: B batch, H heads, S slots, K slots that are read, d head width, N states.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from parti.layers.lookup import lookup
from parti.layers.sparse_masks import MaskKind, distances_back, image_mask


class CacheLayout:
    """The slot of each state's keys and values, and the slots that a state reads; shared by all layers of a mask."""

    def __init__(self, kind: MaskKind, grid: tuple[int, int], kernel: int, device: torch.device) -> None:
        self._kind: MaskKind = kind
        self._grid = grid
        self._kernel = kernel
        self._device = device
        distances = distances_back(kind, grid, kernel)
        self.slots = grid[0] * grid[1] if kind == "column" else distances[-1] + 1
        self._bias_by_phase: Tensor | None = None
        if kind != "column" and len(distances) < self.slots:
            is_read = torch.zeros(self.slots, dtype=torch.bool)
            is_read[distances] = True
            slots = torch.arange(self.slots)
            # For a state at slot p, slot s holds the state (p - s) mod S positions before it.
            self._bias_by_phase = additive(is_read[(slots[:, None] - slots) % self.slots]).to(device)
        self._tables: tuple[Tensor, Tensor] | None = None

    def slot(self, state: int) -> int:
        """Returns the slot for the state's keys and values, whose previous content is no longer read."""
        if self._kind == "column":
            row, column = divmod(state, self._grid[1])
            return column * self._grid[0] + row
        return state % self.slots

    def run(self, state: int) -> tuple[slice, Float[Tensor, "K"] | None]:
        """Returns the slots that `state` reads, and the additive mask of their scores if some of them do not count."""
        if self._kind == "column":
            row, column = divmod(state, self._grid[1])
            return slice(column * self._grid[0], column * self._grid[0] + row + 1), None
        run = slice(0, min(state + 1, self.slots))
        return run, None if self._bias_by_phase is None else self._bias_by_phase[state % self.slots, run]

    def tables(self) -> tuple[Int64[Tensor, "N"], Float[Tensor, "N S"]]:
        """Returns every state's slot, and the additive mask over all slots when that state reads: for steps whose
        position is a tensor."""
        if self._tables is None:
            mask = image_mask(self._kind, self._grid, self._kernel)
            slots = torch.tensor([self.slot(state) for state in range(len(mask))])
            is_read = torch.zeros(len(mask), self.slots, dtype=torch.bool)
            holds = torch.full((self.slots,), -1)
            for state in range(len(mask)):
                holds[slots[state]] = state
                is_read[state] = mask[state, holds] & (holds >= 0)
            self._tables = slots.to(self._device), additive(is_read).to(self._device)
        return self._tables


class KeyValueCache:
    """Keys and values of one layer, in one preallocated tensor."""

    def __init__(self, layout: CacheLayout, batch: int, heads: int, like: Float[Tensor, "... d"]) -> None:
        self.layout = layout
        # Zeros: a masked slot has weight 0, but 0 times NaN is NaN.
        self.both = like.new_zeros(2, batch, heads, layout.slots, like.shape[-1])

    def write(self, state: int | Tensor, both: Float[Tensor, "2 B H d"]) -> None:
        """Stores keys and values of one state."""
        if isinstance(state, int):
            self.both[:, :, :, self.layout.slot(state)] = both
        else:
            slots, _ = self.layout.tables()
            self.both.index_copy_(3, lookup(slots, state), both[:, :, :, None])

    def read(
        self, state: int | Tensor
    ) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"], Float[Tensor, "K"] | None]:
        """Returns the keys and values that `state` reads, including its own, and the additive mask of their scores, if
        any."""
        if isinstance(state, int):
            run, bias = self.layout.run(state)
            keys, values = self.both[:, :, :, run].unbind(0)
        else:
            bias = lookup(self.layout.tables()[1], state)[0]
            keys, values = self.both.unbind(0)
        return keys, values, bias if bias is None else bias.to(keys.dtype)


def additive(is_read: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns the additive form of a mask: 0 where true, -inf elsewhere."""
    return torch.zeros(is_read.shape, device=is_read.device).masked_fill_(~is_read, float("-inf"))
