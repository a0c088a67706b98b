"""Attention heatmaps of Show, Attend and Tell for each word of a caption, over the image (1502.03044, figure 3).

The attention of a word of several tokens is their mean. Heat is relative to the maximum of the word's own map.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from vqgan.contact_sheet import contact_sheet

_SIDE = 176
"""Smallest side of an image on the sheet, in pixels, so that heat is smooth and not as coarse as the attention map."""
_HEAT = (255, 60, 0)
_STRONGEST = 0.8
"""Opacity of the strongest heat."""


def words_with_attention(
    prefixes: Sequence[str], attention_maps: Float[np.ndarray, "T P"]
) -> list[tuple[str, Float[np.ndarray, "P"]]]:
    """Returns the words of a caption, each with its attention map.

    `prefixes[t]` is the text of the caption's first t + 1 tokens, `attention_maps[t]` the attention for token t. A
    token belongs to the last word of the text that ends with it.
    """
    of_word: dict[int, list[int]] = {}
    for token, prefix in enumerate(prefixes):
        if prefix.split():
            of_word.setdefault(len(prefix.split()) - 1, []).append(token)
    words = prefixes[-1].split() if prefixes else []
    return [(word, attention_maps[of_word[number]].mean(0)) for number, word in enumerate(words) if number in of_word]


def heatmap_sheet(image: Image.Image, caption: str, words: Sequence[tuple[str, Float[np.ndarray, "P"]]]) -> Image.Image:
    """Returns a sheet with the image and its caption, followed by the image with the heatmap of each word."""
    scale = -(-_SIDE // max(image.size))
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    shown = [large, *(_heated(large, attention_maps) for _, attention_maps in words)]
    return contact_sheet(shown, [caption, *(word for word, _ in words)], scale=1)


def _heated(image: Image.Image, attention_maps: Float[np.ndarray, "P"]) -> Image.Image:
    side = round(len(attention_maps) ** 0.5)
    strength = (attention_maps / attention_maps.max()).reshape(side, side).astype(np.float32)
    smooth = Image.fromarray(strength).resize(image.size, Image.Resampling.BICUBIC)
    cover = np.clip(np.asarray(smooth), 0, 1) * (255 * _STRONGEST)
    return Image.composite(Image.new("RGB", image.size, _HEAT), image, Image.fromarray(cover.astype(np.uint8)))
