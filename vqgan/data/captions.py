"""Which caption an image is shown with, where the data set has several for it.

Several are a list of texts, or the lines of one text: `captions: random` gives another one each time the image is
shown (DALL-E's data and MS-COCO have five an image). Evaluation, previews and metrics take the first.
"""

import re
from typing import Any, Literal

import numpy as np

from vqgan.data.source import Sample, UnusableSample, is_encodable

MAX_CAPTION_BYTES = 1_000_000
"""A larger caption is a mistake or an attack: tokenizers take minutes and gigabytes for it."""
_NEWLINE = re.compile(r"\r\n|\n|\r")
"""What ends a line of captions: not the separators U+2028, U+0085 and others, at which str.splitlines splits too."""

CaptionChoice = Literal["auto", "first", "random", "joined"]
"""Of several captions. auto: the first of a list, all of a text whatever its lines; first: the first text or line;
random: one text or line, sampled each time the image is shown; joined: all of them in one."""


def read_captions(value: Any, choice: CaptionChoice, name: str, *, required: bool) -> tuple[str, ...]:
    """Returns the captions that training may show of item `name`: more than one only where the choice is random.

    `value` is what the data set holds: None, text, or a list of texts, of which values that are not text are skipped.
    Whitespace is collapsed, blank captions are left out. Raises UnusableSample for any other value, or where a
    caption is `required` and there is none.
    """
    if value is not None and not isinstance(value, str | list | tuple):
        raise UnusableSample(name, f"its caption is {value!r:.60}, not text")
    if isinstance(value, str):
        texts = _NEWLINE.split(value) if choice in ("first", "random") else [value]
    else:
        texts = [text for text in value or () if isinstance(text, str)]
    if sum(map(len, texts)) > MAX_CAPTION_BYTES:
        raise UnusableSample(name, f"its caption has more than {MAX_CAPTION_BYTES:,} characters")
    captions = tuple(filter(None, (" ".join(text.split()) for text in texts)))
    if not all(is_encodable(caption) for caption in captions):
        raise UnusableSample(name, "its caption holds half a character (a lone surrogate): save it as UTF-8 text")
    if required and not captions:
        raise UnusableSample(name, "no caption")
    if choice == "joined":
        return (" ".join(captions),) if captions else ()
    return captions if choice == "random" else captions[:1]


def choose_caption(sample: Sample, rng: np.random.Generator | None) -> str | None:
    """Returns the caption to show: sampled with `rng` if there are several; the first without (evaluation)."""
    if rng is None or len(sample.captions) < 2:
        return sample.caption  # no random number is used, so data sets with one caption keep their random crops
    return sample.captions[int(rng.integers(len(sample.captions)))]


def all_captions(sample: Sample) -> tuple[str, ...]:
    """Returns every caption that training may show with a sample's image."""
    return sample.captions or ((sample.caption,) if sample.caption else ())
