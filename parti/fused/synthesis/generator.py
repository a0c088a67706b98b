"""The generator of progressive text-to-image: captions and noise through the trunk to images at three scales.

Row 3 is a learned constant that attends to the text (one direction in the diagram); rows 4 to 11 are the trunk's, with
noise added at the deepest; row 12 is fused as well, and the finer rows attend to its text, one direction. Images come
from rows 12, 13 and 14, at a quarter, half and all of the side, by a 1x1 convolution and tanh each. At the diagram's
sizes it has 197.6 million parameters.

Legend: B batch, C image channels, H W the row's grid, T text positions, D text width, Z channels of the noise.
"""

from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.fused.fusion import Fusion, TextToImageFusion, group_norm
from parti.fused.rows import LAST_ROW, TrunkConfig
from parti.fused.synthesis.noise import NoiseBranch, NoiseConfig
from parti.fused.text_side import TextSpace
from parti.fused.trunk import RowParts, RowState
from vqgan.config.schema import Config

FIRST_ROW = 3
"""Row of the learned constant. The rows before it have text only."""
IMAGE_ROWS = (12, 13, 14)
"""Rows that output an image, from the smallest to the largest."""


class SynthesisConfig(Config, fixed=("finest_channels",)):
    """The generator; the defaults are those of the diagram."""

    trunk: TrunkConfig = TrunkConfig()
    """The trunk. image_size is that of the largest image; the others have a half and a quarter of its side."""
    finest_channels: int = Field(32, gt=0)
    """Image channels of row 14, which is a plain image in the trunk."""
    noise: NoiseConfig = NoiseConfig()
    """The noise that distinguishes images of one caption."""

    @model_validator(mode="after")
    def _check_there_is_a_row_for_the_noise(self) -> "SynthesisConfig":
        if self.trunk.deepest_row <= FIRST_ROW:
            raise ValueError(
                f"trunk.deepest_row is {self.trunk.deepest_row}, but row {FIRST_ROW} is a constant and the noise "
                "enters below it; use 4 or more"
            )
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the images in pixels, from the smallest to the largest."""
        return tuple(self.trunk.side(row) for row in IMAGE_ROWS)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of one image's noise."""
        side = self.trunk.side(self.trunk.deepest_row)
        return (self.noise.channels, side, side)


class SynthesisGenerator(nn.Module):
    """Generates images in (-1, 1) from ids and noise.

    Raises ConfigError if the BERT of the text side cannot be loaded or does not fit.
    """

    def __init__(self, config: SynthesisConfig, tokens: TextSpace) -> None:
        super().__init__()
        trunk, text = config.trunk, config.trunk.text
        self.config = config

        def one_way(channels: int) -> TextToImageFusion:
            return TextToImageFusion(channels, text.width, text.heads, trunk.normalization)

        self.parts = RowParts(trunk, tokens, range(4, 13), range(1, 12), range(4, 13))
        # Among the trunk's fusions, where initialization from another task's weights looks for it.
        self.parts.fusions[str(FIRST_ROW)] = one_way(trunk.width(FIRST_ROW))
        self.constant = LearnedConstant(trunk.width(FIRST_ROW), trunk.side(FIRST_ROW))
        self.noise = NoiseBranch(config.noise, trunk.width(trunk.deepest_row))
        widths = {12: trunk.width(12), 13: trunk.width(13), LAST_ROW: config.finest_channels}
        self.finer = nn.ModuleDict(
            {str(row): FinerRow(widths[row - 1], widths[row], one_way(widths[row])) for row in (13, LAST_ROW)}
        )
        self.to_rgb = nn.ModuleDict({str(row): nn.Conv2d(widths[row], 3, 1) for row in IMAGE_ROWS})

    def forward(
        self, ids: Int64[Tensor, "B T"], noise: Float[Tensor, "B Z h w"], scales: int = len(IMAGE_ROWS)
    ) -> tuple[Tensor, ...]:
        """Returns images (B, 3, side, side) for the first `scales` of `config.sides`, in fp32."""
        images: list[Tensor] = []
        for state in self.run_rows(ids, noise):
            if state.row in IMAGE_ROWS:
                generated = self.to_rgb[str(state.row)](state.image)
                images.append(torch.tanh(generated.float()))  # bf16 cannot represent most of the 256 levels near white
            if len(images) == scales:
                break
        return tuple(images)

    def repeated_layers(self) -> list[nn.Module]:
        """Returns the layers of all rows."""
        return [*self.parts.repeated_layers(), *self.finer.values()]

    def weights_beyond(self, scales: int) -> list[nn.Parameter]:
        """Returns the weights that the first `scales` images do not depend on."""
        rows = [str(row) for row in IMAGE_ROWS[scales:]]
        unused = [self.to_rgb[row] for row in rows] + [self.finer[row] for row in rows if row in self.finer]
        if scales == 1:
            # The text update of row 12, which only the finer rows read.
            last = cast(Fusion, self.parts.fusions[str(IMAGE_ROWS[0])])
            unused += [last.image_value, last.text_read, last.text_last]
        return [parameter for part in unused for parameter in part.parameters()]

    def run_rows(self, ids: Int64[Tensor, "B T"], noise: Float[Tensor, "B Z h w"]) -> Iterator[RowState]:
        """Yields every row that has an image, from row 3 on."""
        parts, trunk = self.parts, self.config.trunk
        mask = parts.tokens.seen(ids)

        # 1. Text only, then the constant attends to it.
        text = parts.embeddings(ids)
        for row in range(1, FIRST_ROW + 1):
            text = parts.text_step(row, text, mask)
        image = parts.fusions[str(FIRST_ROW)](self.constant(len(ids)), text, mask)
        yield RowState(FIRST_ROW, image, text)

        # 2. Down to the noise and up again, text and image side by side; row 12 has no BertLayer.
        behind = {FIRST_ROW: image}
        for row in trunk.rows:
            if not FIRST_ROW < row <= IMAGE_ROWS[0]:
                continue
            image = parts.image_step(row, image)
            if str(row) in parts.text:
                text = parts.text_step(row, text, mask)
            if row == trunk.deepest_row:
                image = image + self.noise(noise)
            mirror = trunk.mirror(row)
            if trunk.skips and mirror in behind:
                image = image + behind[mirror]
            image, text = parts.fuse(row, image, text, mask)
            if trunk.goes_down(row):
                behind[row] = image
            yield RowState(row, image, text)

        # 3. The finer rows; the text stays the same.
        for row in (13, LAST_ROW):
            image = self.finer[str(row)](image, text, mask)
            yield RowState(row, image, text)


class LearnedConstant(nn.Module):
    """The learned input of row 3, initialized with N(0, 1)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, side, side))

    def forward(self, batch: int) -> Float[Tensor, "B C H W"]:
        return self.weight.expand(batch, -1, -1, -1)


class FinerRow(nn.Module):
    """Upsampling by 2, a basic block, a fusion with the text, a basic block."""

    def __init__(self, channels: int, out_channels: int, fusion: TextToImageFusion) -> None:
        super().__init__()
        # With output padding, stride 2 doubles the size exactly.
        step = nn.ConvTranspose2d(channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.step = nn.Sequential(step, group_norm(out_channels), nn.SiLU())
        self.before = BasicBlock(out_channels)
        self.fusion = fusion
        self.after = BasicBlock(out_channels)

    def forward(
        self, image: Float[Tensor, "B c h w"], text: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B C H W"]:
        return self.after(self.fusion(self.before(self.step(image)), text, mask))


class BasicBlock(nn.Module):
    """ResNet's basic block (arXiv 1512.03385, figure 2) with the trunk's norm and activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
        )
        self.activation = nn.SiLU()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.activation(x + self.branch(x))
