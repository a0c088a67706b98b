"""Attention of the blocks: all positions at once, or one cached step.

One legend: B batch, Q queries, K keys, D width, H heads, d head width.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from parti.layers.decode_attention import decode_attention
from parti.layers.kv_cache import KeyValueCache
from parti.layers.norms import HeadNorm
from parti.layers.rotary import RotaryPositions
from parti.layers.shared_text import SharedText, by_text
from parti.layers.sparse_attention import SparsePattern, attend_sparse
from vqgan.layers.attend import attend


class SelfAttention(nn.Module):
    """Multi-head self-attention: bidirectional with a key mask (text), under a pattern (image), or one cached step.

    With `qk_norm` and `rotary`, queries and keys are normalized and then rotated by their position.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False, rotary: RotaryPositions | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = HeadNorm(width // heads) if qk_norm else None
        self.key_norm = HeadNorm(width // heads) if qk_norm else None
        self.rotary = rotary

    def forward(self, x: Float[Tensor, "B Q D"], mask: Bool[Tensor, "#B #1 #Q Q"]) -> Float[Tensor, "B Q D"]:
        """Attends to all positions of `x` where `mask` is true."""
        q, k, v = self._project(x)
        return self._join(attend(q, k, v, mask))

    def causal_forward(self, x: Float[Tensor, "B Q D"], pattern: SparsePattern) -> Float[Tensor, "B Q D"]:
        """Attends to earlier positions by `pattern`; `x` may be a prefix of its states."""
        q, k, v = self._project(x)
        return self._join(attend_sparse(q, k, v, pattern))

    def step(self, x: Float[Tensor, "B D"], cache: KeyValueCache, position: int | Tensor) -> Float[Tensor, "B D"]:
        """Returns the output at `position`; keys and values of earlier positions are in the cache."""
        queries = self._project_step(x, cache, position)
        return self.out(decode_attention(queries, *cache.read(position)).flatten(1))

    def _project(
        self, x: Float[Tensor, "B Q D"]
    ) -> tuple[Float[Tensor, "B H Q d"], Float[Tensor, "B H Q d"], Float[Tensor, "B H Q d"]]:
        q, k, v = rearrange(self.qkv(x), "b q (three h d) -> three b h q d", three=3, h=self.heads)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary is not None:
            q, k = self.rotary.rotate(q), self.rotary.rotate(k)
        return q, k, v

    def _project_step(
        self, x: Float[Tensor, "B D"], cache: KeyValueCache, position: int | Tensor
    ) -> Float[Tensor, "B H d"]:
        """Returns the queries of image position `position`, and stores its keys and values in the cache."""
        qkv = self.qkv(x).view(len(x), 3, self.heads, -1).transpose(0, 1)  # (3, B, H, d)
        q, both = qkv[0], qkv[1:]
        if self.query_norm is not None and self.key_norm is not None:
            q, both = self.query_norm(q), torch.stack([self.key_norm(both[0]), both[1]])
        if self.rotary is not None:
            q = self.rotary.rotate(q, position)
            both = torch.stack([self.rotary.rotate(both[0], position), both[1]])
        cache.write(position, both)
        return q

    def _join(self, x: Float[Tensor, "B H Q d"]) -> Float[Tensor, "B Q D"]:
        return self.out(rearrange(x, "b h q d -> b q (h d)"))


class CrossAttention(nn.Module):
    """Attention from image positions to the text encoder's output."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = HeadNorm(width // heads) if qk_norm else None
        self.key_norm = HeadNorm(width // heads) if qk_norm else None

    def project_memory(
        self, memory: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"]]:
        """Projects the text to keys and values, once per prompt."""
        k, v = rearrange(self.key_value(memory), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        return k if self.key_norm is None else self.key_norm(k), v

    def forward(
        self,
        x: Float[Tensor, "B Q D"],
        keys: Float[Tensor, "B H K d"],
        values: Float[Tensor, "B H K d"],
        key_mask: Bool[Tensor, "B K"],
    ) -> Float[Tensor, "B Q D"]:
        """Attends to the projected text where `key_mask` is true."""
        q = self._queries(x).transpose(1, 2)
        attended = attend(q, keys, values, key_mask[:, None, None, :])
        return self.out(rearrange(attended, "b h q d -> b q (h d)"))

    def step(self, x: Float[Tensor, "B D"], texts: Sequence[SharedText]) -> Float[Tensor, "B D"]:
        """Computes one position of each image, which attends to its own text."""
        return self.out(by_text(texts, SharedText.read, self._queries(x)).flatten(1))

    def _queries(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows H d"]:
        q = self.query(x).unflatten(-1, (self.heads, -1))
        return q if self.query_norm is None else self.query_norm(q)
