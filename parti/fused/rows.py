"""The rows of the diagrams (papers.md E): sizes of image and text in each, for the original and for smaller trunks.

Rows are numbered as in the diagrams. Row k halves the image for the k-th time down to the deepest row, 7; row 14 - k
has the size of row k. With fewer halvings, rows in the middle are left out and all others keep their numbers: with
`deepest_row` 4 a trunk has the rows 1 2 3 4 11 12 13 14. So a row has the same number in trunks of any size and in all
three tasks.
"""

from typing import Annotated

from pydantic import Field, model_validator

from parti.fused.fusion import Normalization
from parti.fused.text_side import TextSideConfig
from vqgan.config.schema import Config

LAST_ROW = 14
"""Row 0 is the input: the image and the ids."""


class TrunkConfig(Config, fixed=("image_size", "deepest_row", "channels", "skips", "normalization")):
    """Sizes of the trunk; the defaults are those of the diagram."""

    image_size: int = Field(256, gt=0)
    """Side of the image in rows 0 and 14, in pixels."""
    deepest_row: int = Field(7, ge=3, le=7)
    """Row with the smallest image, of image_size / 2 ** deepest_row pixels; rows between it and its mirror row are
    left out."""
    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (64, 128, 256, 512, 512, 512, 512), strict=False, min_length=3, max_length=7
    )
    """Image channels of rows 1, 2, ... down to the deepest; row 14 - k has as many as row k."""
    skips: bool = False
    """Add row k to row 14 - k, as in a U-Net. The diagram has no skip connections; the shapes allow them."""
    normalization: Normalization = "softmax"
    """How a fusion weights what it reads: softmax; or count, the plain affinity divided by the number of keys."""
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
        """The numbers of the rows after row 0."""
        down, up = range(1, self.deepest_row + 1), range(LAST_ROW + 1 - self.deepest_row, LAST_ROW + 1)
        return (*down, *up)

    def goes_down(self, row: int) -> bool:
        """Returns whether the step into `row` halves the image; otherwise it doubles it."""
        return row <= self.deepest_row

    def before(self, row: int) -> int:
        """Returns the row before `row`, among those of this trunk."""
        return 0 if row == 1 else self.rows[self.rows.index(row) - 1]

    def mirror(self, row: int) -> int | None:
        """Returns the row of the same size on the way down, for a row on the way up."""
        return LAST_ROW - row if row > LAST_ROW - self.deepest_row else None

    def side(self, row: int) -> int:
        """Returns the side of the image in `row`, in pixels."""
        return int(self.image_size >> min(row, LAST_ROW - row))

    def width(self, row: int) -> int:
        """Returns the image channels of `row`."""
        level = min(row, LAST_ROW - row)
        return self.channels[level - 1] if level else 3
