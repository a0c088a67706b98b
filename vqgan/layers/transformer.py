"""Pre-LN transformer blocks with full attention, as in ViT-VQGAN (arXiv 2110.04627, section 3.1)."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqgan.config.schema import Config
from vqgan.layers.attend import attend
from vqgan.layers.positions import grid_resizer, positions_on


class TransformerConfig(Config, fixed=("depth", "width", "heads", "mlp_width"), may_change=("dropout",)):
    """Size of one transformer stack."""

    depth: int = Field(8, gt=0)
    """Number of blocks."""
    width: int = Field(512, gt=0)
    """Model width d."""
    heads: int = Field(8, gt=0)
    """Attention heads; the head width is width / heads."""
    mlp_width: int = Field(2048, gt=0)
    """Hidden width of each block's feed-forward."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on both residual branches."""

    @model_validator(mode="after")
    def _check_heads(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        return self


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), with GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width), nn.GELU(), nn.Linear(config.mlp_width, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """Learned positions for a grid of tokens, `depth` blocks and a final LayerNorm."""

    def __init__(self, config: TransformerConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1], config.width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def resizers(self) -> dict[str, Callable[[Tensor, Tensor], Tensor | None]]:
        """See `vqgan.hub.initial_weights.HasResizers`."""
        return {"positions": grid_resizer(self.grid)}

    def forward(self, x: Float[Tensor, "B N D"], grid: tuple[int, int] | None = None) -> Float[Tensor, "B N D"]:
        """`grid` (h, w), N = h * w, where it is not the one that the positions were learned for."""
        x = x + positions_on(self.positions, self.grid, grid or self.grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
