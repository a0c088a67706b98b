"""Cross-attention in both directions between image and text, with one affinity of every position and every token.

In the diagram (papers.md E.2), for 32 x 32 x 256 beside 30 x 768: a narrow pair (image 1x1 to 256, text to 768)
multiplies into the affinity; the affinity times the wide image branch (512) gives 30 x 1536 for the text; times the
wide text branch (1536) it gives 32 x 32 x 512 for the image. Each side is concatenated with what it read, projected to
its own width and added to itself.

This reading matches every width of the diagram: heads of h = text_width / text_heads channels (64), image_channels / h
of them on the image side (4), values twice as wide. Each pair of heads has an affinity, so flattening (position, head)
makes this ordinary cross-attention between P * n and T * m vectors of width h. Departures from the diagram, which names
none of these: norms before the narrow and wide branches, the scale 1 / sqrt(h), a softmax in each direction, and a
padding mask. The last layers start at zero, so a new fusion is the identity and a pretrained BERT is unchanged at
first.

Legend: B batch, C image channels, H W the row's grid, P = H * W, n image heads, T text positions, m text heads,
h head width, D text width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

Normalization = Literal["softmax", "count"]
"""The diagram leaves it open. softmax: over the keys, in each direction; count: the plain products divided by the
number of keys (the literal diagram, whose values would grow with the map)."""

_GROUPS, _LEAST_IN_GROUP = 32, 4


class _ImageReadsText(nn.Module):
    """The layers that both fusions have: the narrow pair, the wide text branch, and the image's output layers."""

    def __init__(
        self, image_channels: int, text_width: int, text_heads: int, normalization: Normalization = "softmax"
    ) -> None:
        super().__init__()
        if text_width % text_heads:
            raise ValueError(f"text width {text_width} does not divide into {text_heads} heads; choose a multiple")
        self.head_width = text_width // text_heads
        self.image_heads = max(1, image_channels // self.head_width)
        self.text_heads = text_heads
        self.normalization: Normalization = normalization
        narrow = self.image_heads * self.head_width
        self.image_norm = group_norm(image_channels)
        self.text_norm = nn.LayerNorm(text_width)
        self.image_key = nn.Conv2d(image_channels, narrow, 1)
        self.text_key = nn.Linear(text_width, text_width)
        self.text_value = nn.Linear(text_width, 2 * text_width)
        self.image_read = nn.Conv2d(2 * narrow, 2 * narrow, 1)
        self.image_last = nn.Conv2d(image_channels + 2 * narrow, image_channels, 1)
        _start_at_zero(self.image_last)

    def _image_heads(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B Pn d"]:
        return rearrange(x, "b (n d) y x -> b (y x n) d", n=self.image_heads)

    def _text_heads(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B Tm e"]:
        return rearrange(x, "b t (m d) -> b (t m) d", m=self.text_heads)

    def _into_image(self, image: Float[Tensor, "B C H W"], read: Float[Tensor, "B Pn d"]) -> Float[Tensor, "B C H W"]:
        height, width = image.shape[-2:]
        read = rearrange(read, "b (y x n) d -> b (n d) y x", y=height, x=width)
        return image + self.image_last(torch.cat([image, self.image_read(read.to(image.dtype))], dim=1))


class TextToImageFusion(_ImageReadsText):
    """One direction: the image attends to the text, which is unchanged."""

    def forward(
        self, image: Float[Tensor, "B C H W"], text: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B C H W"]:
        """Returns the updated image; `mask` is false at padding."""
        normed = self.text_norm(text)
        read = attend(
            self._image_heads(self.image_key(self.image_norm(image))),
            self._text_heads(self.text_key(normed)),
            self._text_heads(self.text_value(normed)),
            repeat(mask, "b t -> b (t m)", m=self.text_heads),
            self.normalization,
        )
        return self._into_image(image, read)


class Fusion(_ImageReadsText):
    """Both directions. At C = 256 beside 30 x 768 it has 6.56M parameters, at C = 512 8.53M."""

    def __init__(
        self, image_channels: int, text_width: int, text_heads: int, normalization: Normalization = "softmax"
    ) -> None:
        super().__init__(image_channels, text_width, text_heads, normalization)
        self.image_value = nn.Conv2d(image_channels, 2 * self.image_heads * self.head_width, 1)
        self.text_read = nn.Linear(2 * text_width, 2 * text_width)
        self.text_last = nn.Linear(3 * text_width, text_width)
        _start_at_zero(self.text_last)

    def forward(
        self, image: Float[Tensor, "B C H W"], text: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B T D"]]:
        """Returns the updated image and text; `mask` is false at padding, which is unchanged."""
        image_normed, text_normed = self.image_norm(image), self.text_norm(text)
        to_image, to_text = exchange(
            self._image_heads(self.image_key(image_normed)),
            self._text_heads(self.text_key(text_normed)),
            self._image_heads(self.image_value(image_normed)),
            self._text_heads(self.text_value(text_normed)),
            repeat(mask, "b t -> b (t m)", m=self.text_heads),
            self.normalization,
        )
        read = self.text_read(rearrange(to_text, "b (t m) d -> b t (m d)", m=self.text_heads).to(text.dtype))
        change = self.text_last(torch.cat([text, read], dim=-1))
        return self._into_image(image, to_image), text + change * mask[..., None]


def exchange(
    image_keys: Float[Tensor, "B Pn h"],
    text_keys: Float[Tensor, "B Tm h"],
    image_values: Float[Tensor, "B Pn d"],
    text_values: Float[Tensor, "B Tm d"],
    mask: Bool[Tensor, "B Tm"],
    normalization: Normalization,
) -> tuple[Float[Tensor, "B Pn d"], Float[Tensor, "B Tm d"]]:
    """Returns what the image vectors read from the text where `mask` is true, and what the text reads from the
    image."""
    if normalization == "softmax" and image_keys.device.type == "cpu":
        # One affinity for both directions; the fused kernel's backward pass is slow on a CPU. fp32 for the softmax.
        with torch.autocast("cpu", enabled=False):
            affinity = _scaled(image_keys.float()) @ text_keys.float().transpose(1, 2)
            hidden = _hidden(mask, torch.float32)
            to_image = torch.softmax(affinity + hidden, dim=2) @ text_values.float()
            to_text = torch.softmax(affinity, dim=1).transpose(1, 2) @ image_values.float()
        return to_image, to_text
    # Compute the affinity twice, with a kernel that never stores it: at 64 x 64 and above it would not fit.
    to_image = attend(image_keys, text_keys, text_values, mask, normalization)
    return to_image, attend(text_keys, image_keys, image_values, None, normalization)


def attend(
    queries: Float[Tensor, "B Q h"],
    keys: Float[Tensor, "B K h"],
    values: Float[Tensor, "B K d"],
    mask: Bool[Tensor, "B K"] | None,
    normalization: Normalization,
) -> Float[Tensor, "B Q d"]:
    """Computes one direction of `exchange`: attention of the queries to the keys where `mask` is true."""
    if normalization == "softmax":
        on_cpu = queries.device.type == "cpu"
        return (softmax_by_steps if on_cpu else softmax_by_kernel)(queries, keys, values, mask)
    with torch.autocast(queries.device.type, enabled=False):
        # Without a softmax the products may be taken in the other order, which is (h x d) small.
        keys = keys.float()
        count: float | Tensor = keys.shape[1]
        if mask is not None:
            keys, count = keys * mask[..., None], mask.sum(1)[:, None, None]
        return _scaled(queries.float()) @ (keys.transpose(1, 2) @ values.float()) / count


def softmax_by_steps(
    queries: Float[Tensor, "B Q h"],
    keys: Float[Tensor, "B K h"],
    values: Float[Tensor, "B K d"],
    mask: Bool[Tensor, "B K"] | None,
) -> Float[Tensor, "B Q d"]:
    """`attend` in three operations, which store the affinity. On a CPU, in bf16, 0.57 of the kernel's time."""
    hidden = queries.new_zeros(1, 1, 1) if mask is None else _hidden(mask, queries.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        affinity = torch.baddbmm(hidden, queries, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5)
        return torch.softmax(affinity, dim=2) @ values


def softmax_by_kernel(
    queries: Float[Tensor, "B Q h"],
    keys: Float[Tensor, "B K h"],
    values: Float[Tensor, "B K d"],
    mask: Bool[Tensor, "B K"] | None,
) -> Float[Tensor, "B Q d"]:
    """`attend` in one kernel that never stores the affinity. Its softmax accumulates in fp32 for any input type."""
    seen = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], attn_mask=seen)[:, 0]


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a GroupNorm of 32 groups, or as many as divide the channels and leave at least four in each.

    A group of one channel would lose its mean, such as the overall color that a caption asks for.
    """
    most = max(1, min(_GROUPS, channels // _LEAST_IN_GROUP))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def _hidden(mask: Bool[Tensor, "B K"], dtype: torch.dtype) -> Float[Tensor, "B 1 K"]:
    """Returns the additive mask of the affinity: 0 where `mask` is true, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)[:, None]


def _scaled(x: Float[Tensor, "B Q h"]) -> Float[Tensor, "B Q h"]:
    return x * x.shape[-1] ** -0.5


def _start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
