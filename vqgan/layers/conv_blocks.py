"""The blocks of the CNN VQGAN: residual, attention, and changes of resolution (arXiv 2012.09841, table 7; papers.md B).

As in CompVis/taming-transformers `taming/modules/diffusionmodules/model.py`. All of them keep whatever memory format
they receive: run the module with `memory_format=torch.channels_last` where that is the faster one.

Letters: B batch, C channels, h w the grid at the block's resolution.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vqgan.layers.attend import attend


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Normalization over groups of channels, with taming's epsilon."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


def downsample(channels: int) -> nn.Sequential:
    """Half the resolution: a 3x3 convolution of stride 2, padded with zeros on the right and at the bottom only."""
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def upsample(channels: int) -> nn.Sequential:
    """Twice the resolution: every position repeated 2x2, then a 3x3 convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


class ResidualBlock(nn.Module):
    """x + conv(dropout(swish(norm(conv(swish(norm(x))))))); a 1x1 convolution carries x where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.swish = nn.SiLU()
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C_out h w"]:
        y = self.conv1(self.swish(self.norm1(x)))
        y = self.conv2(self.dropout(self.swish(self.norm2(y))))
        return self.shortcut(x) + y


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) over all positions: one head, as wide as the block; no positions are told apart."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        y = self.norm(x)
        q, k, v = (rearrange(layer(y), "b c h w -> b 1 (h w) c") for layer in (self.query, self.key, self.value))
        attended = rearrange(attend(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return x + self.out(attended)


class Level(nn.Module):
    """What happens at one resolution: residual blocks, each followed by attention if asked; then `resample`."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        blocks: int,
        attention: bool,
        resample: nn.Module,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * blocks]
        self.blocks = nn.ModuleList(
            ResidualBlock(width, channels_out, groups=groups, dropout=dropout) for width in widths[:blocks]
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(channels_out, groups=groups) if attention else nn.Identity() for _ in range(blocks)
        )
        self.resample = resample

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C_out h_out w_out"]:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resample(x)


def middle(channels: int, *, groups: int, dropout: float, attention: bool = True) -> nn.Sequential:
    """Returns the blocks at the lowest resolution, between encoder levels and head, and between decoder entry and
    levels."""
    return nn.Sequential(
        ResidualBlock(channels, channels, groups=groups, dropout=dropout),
        AttentionBlock(channels, groups=groups) if attention else nn.Identity(),
        ResidualBlock(channels, channels, groups=groups, dropout=dropout),
    )


def conv_head(channels: int, channels_out: int, *, groups: int) -> nn.Sequential:
    """Returns the end of a stack: norm, swish, 3x3 convolution."""
    return nn.Sequential(group_norm(channels, groups), nn.SiLU(), nn.Conv2d(channels, channels_out, 3, padding=1))
