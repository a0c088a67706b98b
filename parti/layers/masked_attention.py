"""Self-attention over text and image states with one softmax over both, and one cached step of it.

Legend: B batch, S text and image states, T text states, K visible image states, D width, H heads, d head width.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from parti.layers.attention import KeyValueCache
from vqgan.layers.attend import attend


class MaskedSelfAttention(nn.Module):
    """Multi-head self-attention in which a mask says who reads whom; text never reads the image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B S D"], mask: Bool[Tensor, "S S"]) -> Float[Tensor, "B S D"]:
        """All states at once; state i reads state j where `mask[i, j]` is true."""
        q, k, v = self._project(x)
        return self._join(attend(q, k, v, mask[None, None]))

    def read_text(
        self, x: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T d"], Float[Tensor, "B H T d"]]:
        """The text states alone, causally, with the keys and values that image states will read."""
        q, k, v = self._project(x)
        return self._join(attend(q, k, v, causal=True)), k, v

    def step(
        self,
        x: Float[Tensor, "B 1 D"],
        text_keys: Float[Tensor, "B H T d"],
        text_values: Float[Tensor, "B H T d"],
        cache: KeyValueCache,
        position: int,
        visible: slice | Int64[Tensor, "K"],
    ) -> Float[Tensor, "B 1 D"]:
        """The image state at `position`, which reads all text and the `visible` image states of the cache."""
        q, k, v = self._project(x)
        cache.write(position, k, v)
        image_keys, image_values = cache.keys[:, :, visible], cache.values[:, :, visible]
        # Scores of both sides are joined, not keys: with one query that moves d times less memory.
        q = q * q.shape[-1] ** -0.5
        scores = torch.cat([q @ text_keys.transpose(-1, -2), q @ image_keys.transpose(-1, -2)], dim=-1)
        of_text, of_image = scores.softmax(-1).split([text_keys.shape[2], image_keys.shape[2]], dim=-1)
        return self._join(of_text @ text_values + of_image @ image_values)

    def new_cache(self, batch: int, slots: int) -> KeyValueCache:
        """An empty cache for `slots` image states."""
        width = self.out.in_features
        return KeyValueCache(batch, self.heads, slots, width // self.heads, like=self.out.weight)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.heads)
        return q, k, v

    def _join(self, x: Tensor) -> Tensor:
        return self.out(rearrange(x, "b h s d -> b s (h d)"))
