"""Keys and values of the text for decoding steps, shared by images of the same prompt.

Images of one prompt are adjacent in the batch and attend to the same text as several queries of one row, instead of one
row with a copy each.

Legend: B rows of the batch, R of them with one side's texts, G texts, P images of each, T text positions, H heads,
d head width, X and Y whatever each head has.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class SharedText(NamedTuple):
    """Keys and values of G texts, each read by `images` rows of the batch; `bias` is added to the scores, if any."""

    keys: Float[Tensor, "G H T d"]
    values: Float[Tensor, "G H T d"]
    bias: Float[Tensor, "G 1 1 T"] | None
    images: int

    @property
    def rows(self) -> int:
        """Rows of the batch that read these texts."""
        return len(self.keys) * self.images

    def group(self, rows: Float[Tensor, "R H X"]) -> Float[Tensor, "G H P X"]:
        """Groups the rows of this side by text."""
        return rows.unflatten(0, (len(self.keys), self.images)).transpose(1, 2)

    def scores(self, queries: Float[Tensor, "R H d"]) -> Float[Tensor, "R H T"]:
        """Returns the scores of each row with its text's keys, divided by sqrt(d)."""
        return (
            (self.group(queries * queries.shape[-1] ** -0.5) @ self.keys.transpose(-1, -2))
            .transpose(1, 2)
            .flatten(0, 1)
        )

    def mix(self, weights: Float[Tensor, "R H T"]) -> Float[Tensor, "R H d"]:
        """Returns each row's weighted sum of its text's values."""
        return (self.group(weights) @ self.values).transpose(1, 2).flatten(0, 1)

    def read(self, queries: Float[Tensor, "R H d"]) -> Float[Tensor, "R H d"]:
        """Returns the attention of each row to its text only."""
        if self.keys.shape[2] == 1:  # such as the empty text: all weight is on its single position
            return self.values[:, None, :, 0].expand(-1, self.images, -1, -1).flatten(0, 1)
        read = F.scaled_dot_product_attention(self.group(queries), self.keys, self.values, attn_mask=self.bias)
        return read.transpose(1, 2).flatten(0, 1)


def by_text(
    texts: Sequence[SharedText], call: Callable[[SharedText, Tensor], Tensor], rows: Float[Tensor, "B H X"]
) -> Float[Tensor, "B H Y"]:
    """Applies `call` to each of the texts and its rows; the rows of `texts` are concatenated."""
    if len(texts) == 1:
        return call(texts[0], rows)
    parts = rows.split([text.rows for text in texts])
    return torch.cat([call(text, part) for text, part in zip(texts, parts, strict=True)])
