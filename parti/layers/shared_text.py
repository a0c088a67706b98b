"""One layer's keys and values of the text, as the steps of drawing read them.

Images of one prompt stand next to each other in the batch and read the same text: as several queries of one row,
not as rows with a copy each.

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
        """What the rows of this side have for each head, by text."""
        return rows.unflatten(0, (len(self.keys), self.images)).transpose(1, 2)

    def scores(self, queries: Float[Tensor, "R H d"]) -> Float[Tensor, "R H T"]:
        """Of each row with its text's keys, over the root of d."""
        return (
            (self.group(queries * queries.shape[-1] ** -0.5) @ self.keys.transpose(-1, -2))
            .transpose(1, 2)
            .flatten(0, 1)
        )

    def mix(self, weights: Float[Tensor, "R H T"]) -> Float[Tensor, "R H d"]:
        """Of its text's values for each row."""
        return (self.group(weights) @ self.values).transpose(1, 2).flatten(0, 1)

    def read(self, queries: Float[Tensor, "R H d"]) -> Float[Tensor, "R H d"]:
        """Attention of each row to its text and nothing else."""
        if self.keys.shape[2] == 1:  # such as the empty text: all weight is on its one position
            return self.values[:, None, :, 0].expand(-1, self.images, -1, -1).flatten(0, 1)
        read = F.scaled_dot_product_attention(self.group(queries), self.keys, self.values, attn_mask=self.bias)
        return read.transpose(1, 2).flatten(0, 1)


def by_text(
    texts: Sequence[SharedText], call: Callable[[SharedText, Tensor], Tensor], rows: Float[Tensor, "B H X"]
) -> Float[Tensor, "B H Y"]:
    """`call` with each of the texts and its rows; the rows of `texts` stand one after the other."""
    if len(texts) == 1:
        return call(texts[0], rows)
    parts = rows.split([text.rows for text in texts])
    return torch.cat([call(text, part) for text, part in zip(texts, parts, strict=True)])
