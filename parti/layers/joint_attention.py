"""Self-attention over text and image states with one softmax over both, and one cached step of it.

Legend: B batch, T text states, D width, H heads, d head width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from parti.layers.attention import SelfAttention
from parti.layers.decode_attention import decode_scores
from parti.layers.kv_cache import KeyValueCache
from parti.layers.shared_text import SharedText, by_text
from vqgan.layers.attend import attend


class JointAttention(SelfAttention):
    """Self-attention over text and image states under a mask; text never attends to the image."""

    def prefill(
        self, x: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T d"], Float[Tensor, "B H T d"]]:
        """Computes causal self-attention of the text, with the keys and values for the image states."""
        q, k, v = self._project(x)
        return self._join(attend(q, k, v, causal=True)), k, v

    def decode_step(
        self, x: Float[Tensor, "B D"], texts: Sequence[SharedText], cache: KeyValueCache, position: int | Tensor
    ) -> Float[Tensor, "B D"]:
        """Computes the image state at `position`, which attends to all of its text and to the cache."""
        queries = self._project_step(x, cache, position)
        keys, values, bias = cache.read(position)
        # Scores of both sides are joined, not keys: with one query that moves d times less memory.
        of_text, of_image = by_text(texts, SharedText.scores, queries), decode_scores(queries, keys, bias)
        weights = torch.cat([of_text, of_image], dim=-1).softmax(-1, dtype=torch.float32).to(values.dtype)
        text_weights, image_weights = weights.split([of_text.shape[-1], of_image.shape[-1]], dim=-1)
        read = by_text(texts, SharedText.mix, text_weights) + (image_weights[:, :, None] @ values)[:, :, 0]
        return self.out(read.flatten(1))
