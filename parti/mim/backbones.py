"""The encoders: timm's VisionTransformer, Beit and SwinTransformer, built from a config of ours.

Their weights keep timm's names, which are those of the published files of MAE and iBOT too. Networks of a paper go
through an encoder's own parts (`patch_embed`, `blocks`, `norm`) where masks come between them.

Legend: B batch, h w the grid of patches, N = h * w, L = N + 1 with the class token, D width.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqgan.config.schema import Config


class ViTConfig(
    Config,
    fixed=("kind", "image_size", "patch_size", "width", "depth", "heads", "mlp_ratio"),
    may_change=("drop_path",),
):
    """A vision transformer with a class token. The defaults are those of ViT-B/16."""

    kind: Literal["vit"] = "vit"
    """One width and one grid throughout."""
    image_size: int = Field(224, gt=0)
    """Side of the square images in pixels."""
    patch_size: int = Field(16, gt=0)
    """Side of a patch in pixels."""
    width: int = Field(768, gt=0)
    """Channels of a token."""
    depth: int = Field(12, gt=0, le=1000)
    """Number of blocks."""
    heads: int = Field(12, gt=0)
    """Attention heads in each."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Width of the feed-forward layers, in widths of a token."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth: the chance that the last block is left out in training; it grows from 0 with the depth."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "ViTConfig":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} does not divide into patches of {self.patch_size}; set patch_size to a "
                "divisor"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; set heads to a divisor")
        if self.image_size // self.patch_size < 2:
            raise ValueError(
                f"an image of {self.image_size} pixels is one patch of {self.patch_size}: no other patch is left to "
                "predict a masked one from; lower patch_size"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side


class SwinConfig(
    Config,
    fixed=("kind", "image_size", "patch_size", "width", "depths", "heads", "window_size"),
    may_change=("drop_path",),
):
    """Swin Transformer (arXiv 2103.14030). The defaults are those of Swin-B for images of 192 pixels."""

    kind: Literal["swin"] = "swin"
    """Windows of tokens, in stages of half the grid and twice the width of the one before."""
    image_size: int = Field(192, gt=0)
    """Side of the square images in pixels."""
    patch_size: int = Field(4, gt=0)
    """Side of a patch of the first stage in pixels."""
    width: int = Field(128, gt=0)
    """Channels of a token of the first stage."""
    depths: tuple[int, ...] = Field((2, 2, 18, 2), strict=False, min_length=1)
    """Blocks of each stage."""
    heads: tuple[int, ...] = Field((4, 8, 16, 32), strict=False, min_length=1)
    """Attention heads in the blocks of each stage."""
    window_size: int = Field(6, gt=0)
    """Side of a window in tokens."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth: the chance that the last block is left out in training."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "SwinConfig":
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths has {len(self.depths)} stages and heads {len(self.heads)}; give one of each")
        if self.image_size % self.stride:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of the stride {self.stride} that patches of "
                f"{self.patch_size} have after {len(self.depths)} stages; change image_size"
            )
        return self

    @property
    def stride(self) -> int:
        """Pixels between the tokens of the last stage."""
        return int(self.patch_size * 2 ** (len(self.depths) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the first stage."""
        side = self.image_size // self.patch_size
        return side, side


def build_vit(config: ViTConfig) -> Any:
    """timm's VisionTransformer without a head: learned positions, a class token, the last norm on all tokens."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**_sizes(config), global_pool="", fc_norm=False)


def build_beit(config: ViTConfig, layer_scale: float) -> Any:
    """timm's Beit without a head: no absolute positions, one table of relative ones for all blocks, layer scale.

    Initialized as BEiT's code does: weights within one standard deviation of .02, and what a block adds to the
    residual stream divided by sqrt(2 * its number), as it grows with the depth otherwise.
    """
    from timm.models.beit import Beit

    encoder: Any = Beit(
        **_sizes(config), global_pool="", init_values=layer_scale, use_abs_pos_emb=False, use_shared_rel_pos_bias=True
    )
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            truncated_normal(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    truncated_normal(encoder.cls_token)
    with torch.no_grad():
        for number, block in enumerate(encoder.blocks, start=1):
            block.attn.proj.weight.div_((2 * number) ** 0.5)
            block.mlp.fc2.weight.div_((2 * number) ** 0.5)
    return encoder


def build_swin(config: SwinConfig) -> Any:
    """timm's SwinTransformer without a head."""
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=config.width,
        depths=config.depths,
        num_heads=config.heads,
        window_size=config.window_size,
        drop_path_rate=config.drop_path,
    )


def truncated_normal(weight: Tensor) -> None:
    """A normal of standard deviation .02, cut at one of it (BEiT's and SimMIM's initialization)."""
    nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)


def run_beit(encoder: Any, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B L D"]:
    """The normed states of a Beit whose patches are embedded, the class token's first."""
    bias = encoder.rel_pos_bias()
    states = torch.cat([encoder.cls_token.expand(len(tokens), -1, -1), tokens], 1)
    for block in encoder.blocks:
        states = block(states, shared_rel_pos_bias=bias)
    normed: Tensor = encoder.norm(states)
    return normed


def sincos_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "1 L D"]:
    """MAE's fixed positions: half of the width for the column, half for the row, each sines and then cosines.

    The class token's is 0. Raises ValueError for a width that is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"fixed positions need a width that is a multiple of 4, received {width}; change width")
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = [axis.flatten()[:, None] * frequencies for axis in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1).float()
    return torch.cat([torch.zeros(1, width), table])[None]


def _sizes(config: ViTConfig) -> dict[str, Any]:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "num_classes": 0,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "drop_path_rate": config.drop_path,
    }
