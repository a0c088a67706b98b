"""Attention with a key-value cache.

One legend: B batch, Q queries, K keys, S cache slots, D width, H heads, d head width.
"""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vqgan.layers.attend import attend


class KeyValueCache:
    """Keys and values of every position so far, in tensors that are allocated once: (B, H, S, d) each."""

    def __init__(self, batch: int, heads: int, slots: int, head_width: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, heads, slots, head_width)
        self.values = like.new_empty(batch, heads, slots, head_width)

    def write(self, position: int, keys: Float[Tensor, "B H 1 d"], values: Float[Tensor, "B H 1 d"]) -> None:
        """Store one position."""
        self.keys[:, :, position : position + 1] = keys
        self.values[:, :, position : position + 1] = values

    def read(self, length: int) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"]]:
        """The first `length` positions."""
        return self.keys[:, :, :length], self.values[:, :, :length]


class SelfAttention(nn.Module):
    """Multi-head self-attention: bidirectional with a key mask (text), causal (image), or one cached step."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B Q D"], key_mask: Bool[Tensor, "B Q"] | None = None, causal: bool = False
    ) -> Float[Tensor, "B Q D"]:
        """Attend over all positions of `x`: those where `key_mask` is true, or with `causal` the earlier ones."""
        q, k, v = self._project(x)
        mask = key_mask[:, None, None, :] if key_mask is not None else None
        return self._join(attend(q, k, v, mask, causal))

    def step(self, x: Float[Tensor, "B 1 D"], cache: KeyValueCache, position: int) -> Float[Tensor, "B 1 D"]:
        """The causal result at `position` alone; earlier keys and values come from the cache."""
        q, k, v = self._project(x)
        cache.write(position, k, v)
        return self._join(attend(q, *cache.read(position + 1)))

    def new_cache(self, batch: int, slots: int) -> KeyValueCache:
        """An empty cache for `slots` positions."""
        width = self.out.in_features
        return KeyValueCache(batch, self.heads, slots, width // self.heads, like=self.out.weight)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b q (three h d) -> three b h q d", three=3, h=self.heads)
        return q, k, v

    def _join(self, x: Tensor) -> Tensor:
        return self.out(rearrange(x, "b h q d -> b q (h d)"))


class CrossAttention(nn.Module):
    """Attention from image positions to the text encoder's output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project_memory(
        self, memory: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"]]:
        """Keys and values of the text: once per prompt, whatever the number of image tokens."""
        k, v = rearrange(self.key_value(memory), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        return k, v

    def forward(
        self,
        x: Float[Tensor, "B Q D"],
        keys: Float[Tensor, "B H K d"],
        values: Float[Tensor, "B H K d"],
        key_mask: Bool[Tensor, "B K"],
    ) -> Float[Tensor, "B Q D"]:
        """Attend to the projected text wherever `key_mask` is true."""
        q = rearrange(self.query(x), "b q (h d) -> b h q d", h=self.heads)
        attended = attend(q, keys, values, key_mask[:, None, None, :])
        return self.out(rearrange(attended, "b h q d -> b q (h d)"))
