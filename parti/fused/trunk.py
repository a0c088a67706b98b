"""The trunk: convolution rows, BertLayers and fusions, each under its row's number.

The three tasks combine the same parts in their own ways; a part that two of them have has the same name in both, so
that one can be initialized from the other (`parti.fused.transfer`).

Row k: the image step and BertLayer k read row k - 1 in parallel, then they are fused in the rows that have a fusion.

Legend: B batch, C image channels, H W the row's grid, T text positions, D text width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from parti.fused.fusion import Fusion, group_norm
from parti.fused.rows import LAST_ROW, TrunkConfig
from parti.fused.text_side import TextEmbeddings, TextLayer, TextSpace, start_from_bert

FUSED_ROWS = range(3, 12)
"""Rows marked "fusion" in the diagrams of the pretraining task and of captioning."""


class RowState(NamedTuple):
    """Image (B, C, H, W) and text (B, T, D) at the end of a row."""

    row: int
    image: Tensor
    text: Tensor


class RowParts(nn.Module):
    """The parts of the given rows; rows that `config` leaves out are skipped.

    Raises ConfigError if the BERT of the text side cannot be loaded or does not fit.
    """

    def __init__(
        self,
        config: TrunkConfig,
        tokens: TextSpace,
        image_rows: Sequence[int],
        text_rows: Sequence[int],
        fused_rows: Sequence[int],
    ) -> None:
        super().__init__()
        self.config = config
        self.tokens = tokens
        text, there = config.text, config.rows
        self.embeddings = TextEmbeddings(text, tokens)
        self.image = nn.ModuleDict({str(row): _image_step(config, row) for row in image_rows if row in there})
        self.text = nn.ModuleDict({str(row): TextLayer(text) for row in text_rows if row in there})
        self.fusions = nn.ModuleDict(
            {
                str(row): Fusion(config.width(row), text.width, text.heads, config.normalization)
                for row in fused_rows
                if row in there
            }
        )
        layers = cast(list[TextLayer], list(self.text.values()))
        # A task whose first rows have no BertLayer starts at a later layer of the BERT.
        first_layer = next((place for place, row in enumerate(there) if str(row) in self.text), 0)
        start_from_bert(self.embeddings, layers, text, tokens, first_layer)

    def repeated_layers(self) -> list[nn.Module]:
        """Returns the convolutions, BertLayers and fusions, row by row."""
        kinds = (self.image, self.text, self.fusions)
        return [kind[str(row)] for row in self.config.rows for kind in kinds if str(row) in kind]

    def image_step(self, row: int, image: Float[Tensor, "B c h w"]) -> Float[Tensor, "B C H W"]:
        """Applies the convolution into `row`."""
        return self.image[str(row)](image)

    def text_step(self, row: int, text: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Applies the BertLayer of `row`."""
        return self.text[str(row)](text, mask)

    def fuse(
        self, row: int, image: Float[Tensor, "B C H W"], text: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B T D"]]:
        """Applies the fusion of `row`; returns both unchanged if it has none."""
        if str(row) not in self.fusions:
            return image, text
        return self.fusions[str(row)](image, text, mask)


class Trunk(nn.Module):
    """The network of the pretraining diagram: 14 rows from images and ids to images and states."""

    def __init__(self, config: TrunkConfig, tokens: TextSpace) -> None:
        super().__init__()
        self.config = config
        self.parts = RowParts(config, tokens, config.rows, config.rows, FUSED_ROWS)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B T D"]]:
        """Returns row 14: an image before its tanh, and the text states."""
        *_, last = self.run_rows(images, ids)
        return last.image, last.text

    def run_rows(self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"]) -> Iterator[RowState]:
        """Yields every row from row 1 on."""
        parts, mask = self.parts, self.parts.tokens.seen(ids)
        image, text = images, parts.embeddings(ids)
        behind: dict[int, Tensor] = {}
        for row in self.config.rows:
            image, text = parts.image_step(row, image), parts.text_step(row, text, mask)
            mirror = self.config.mirror(row)
            if self.config.skips and mirror is not None and mirror in behind:
                image = image + behind[mirror]
            image, text = parts.fuse(row, image, text, mask)
            if self.config.goes_down(row):
                behind[row] = image
            yield RowState(row, image, text)


def _image_step(config: TrunkConfig, row: int) -> nn.Sequential:
    """3x3 convolution of stride 2, down or up, then GroupNorm and SiLU. Row 14 is a plain image."""
    before, after = config.width(config.before(row)), config.width(row)
    step: nn.Module
    if config.goes_down(row):
        step = nn.Conv2d(before, after, 3, stride=2, padding=1)
    else:
        # With output padding, stride 2 doubles the size exactly.
        step = nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(step) if row == LAST_ROW else nn.Sequential(step, group_norm(after), nn.SiLU())
