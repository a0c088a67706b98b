"""Where Show, Attend and Tell looked for each word of a caption, drawn over the image (1502.03044, figure 3).

A word of several tokens looked where they did on average. Heat is relative to the word's own strongest position.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from vqgan.contact_sheet import contact_sheet

_SIDE = 176
"""Least side of an image on the sheet, in pixels: heat is smooth, not as coarse as the row that is looked at."""
_HEAT = (255, 60, 0)
_STRONGEST = 0.8
"""How much of the image the strongest heat covers."""


def words_with_attention(
    prefixes: Sequence[str], attention_maps: Float[np.ndarray, "T P"]
) -> list[tuple[str, Float[np.ndarray, "P"]]]:
    """The words of a caption and where each was looked for.

    `prefixes[t]` is the text of the caption's first t + 1 tokens, `attention_maps[t]` where its token t was looked for.
    A token belongs to the last word that the text has with it.
    """
    of_word: dict[int, list[int]] = {}
    for token, prefix in enumerate(prefixes):
        if prefix.split():
            of_word.setdefault(len(prefix.split()) - 1, []).append(token)
    words = prefixes[-1].split() if prefixes else []
    return [(word, attention_maps[of_word[number]].mean(0)) for number, word in enumerate(words) if number in of_word]


def heatmap_sheet(image: Image.Image, caption: str, words: Sequence[tuple[str, Float[np.ndarray, "P"]]]) -> Image.Image:
    """The image with its caption, and once for each word with the heat of where it was looked for."""
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
