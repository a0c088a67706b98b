"""The rows of the drawings: how large image and text are in each, for the drawn sizes and for smaller ones.

Rows are numbered as drawn. Row k halves the image for the k-th time down to the deepest row, 7; row 14 - k has the
size of row k. Where fewer halvings are wanted, rows in the middle are left out and all others keep their numbers: with
`deepest_row` 4 a trunk has the rows 1 2 3 4 11 12 13 14. So rows of trunks of any size, and of all three tasks, are
called by the same number.
"""

from typing import Annotated

from pydantic import Field, model_validator

from parti.fused.fusion import Normalization
from parti.fused.text_side import TextSideConfig
from vqgan.config.schema import Config

LAST_ROW = 14
"""Row 0 is what is read: the image and the ids."""


class TrunkConfig(Config, fixed=("image_size", "deepest_row", "channels", "skips", "normalization")):
    """Sizes of the trunk; the defaults are drawn."""

    image_size: int = Field(256, gt=0)
    """Side of the image in rows 0 and 14, in pixels."""
    deepest_row: int = Field(7, ge=3, le=7)
    """Row with the smallest image, of image_size / 2 ** deepest_row pixels; rows between it and its mirror image
    are left out."""
    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (64, 128, 256, 512, 512, 512, 512), strict=False, min_length=3, max_length=7
    )
    """Image channels of rows 1, 2, ... down to the deepest; row 14 - k has as many as row k."""
    skips: bool = False
    """Add row k to row 14 - k, as in a U-Net. The drawing has no such lines; the shapes allow it."""
    normalization: Normalization = "softmax"
    """How a fusion weighs what it reads: softmax; or count, the bare affinity divided by the number of vectors."""
    text: TextSideConfig = TextSideConfig()
    """The text side."""

    @model_validator(mode="after")
    def _check_rows(self) -> "TrunkConfig":
        if self.image_size % 2**self.deepest_row:
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {self.deepest_row} times; use a multiple of "
                f"{2**self.deepest_row}, or a smaller deepest_row"
            )
        if len(self.channels) < self.deepest_row:
            raise ValueError(
                f"channels has {len(self.channels)} values for rows 1 to {self.deepest_row}; give one for each row"
            )
        return self

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the rows behind row 0."""
        down, up = range(1, self.deepest_row + 1), range(LAST_ROW + 1 - self.deepest_row, LAST_ROW + 1)
        return (*down, *up)

    def goes_down(self, row: int) -> bool:
        """Whether the step into `row` halves the image; else it doubles it."""
        return row <= self.deepest_row

    def before(self, row: int) -> int:
        """The row above `row`, among those that are there."""
        return 0 if row == 1 else self.rows[self.rows.index(row) - 1]

    def mirror(self, row: int) -> int | None:
        """The row of the same size on the way down, for one on the way up."""
        return LAST_ROW - row if row > LAST_ROW - self.deepest_row else None

    def side(self, row: int) -> int:
        """Side of the image in `row`."""
        return int(self.image_size >> min(row, LAST_ROW - row))

    def width(self, row: int) -> int:
        """Image channels in `row`."""
        level = min(row, LAST_ROW - row)
        return self.channels[level - 1] if level else 3
