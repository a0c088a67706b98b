"""What a sample of a tar shard is: the members of one key, as the library webdataset writes them.

`000017.jpg` and `000017.txt` are an image and its caption.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from vqgan.config.schema import Config
from vqgan.data.captions import MAX_CAPTION_BYTES, CaptionChoice, read_captions
from vqgan.data.images.decode import Color, decode_image, parse_color
from vqgan.data.source import DataError, Sample, UnusableSample

LARGEST_MEMBER = 1 << 28
"""Bytes of an image or a caption above which it is refused: 256 MB is a mistake or an attack."""


_LARGEST_CAPTION_FILE = 4 * MAX_CAPTION_BYTES
"""Before it is read as text or JSON, which may hold more than the caption."""


class ShardsConfig(
    Config,
    may_change=(
        "kind",
        "path",
        "paths",
        "val_paths",
        "val_fraction",
        "image_keys",
        "caption_key",
        "caption_field",
        "captions",
        "background",
        "streaming",
        "shuffle_buffer",
        "timeout",
        "retries",
    ),
):
    """WebDataset tar shards, local or behind an address (http, https, or what fsspec opens: s3, gs, hf, ...)."""

    kind: Literal["shards"] = "shards"
    """Tar files whose members of one name are one sample."""
    path: str | None = None
    """Shards: a tar file, a folder of them, a glob, or braces as in train-{000000..000127}.tar."""
    paths: tuple[str, ...] = ()
    """More of the same, where one pattern is not enough."""
    val_paths: tuple[str, ...] = ()
    """Shards to hold out; empty: a share of the samples."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Without val_paths: share of the samples to hold out, chosen by their keys."""
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Endings of the images; of several that a sample has, the first counts."""
    caption_key: str | None = "txt"
    """Ending of the captions' files; null: no captions."""
    caption_field: str | None = None
    """With caption_key json: the field that holds the caption."""
    captions: CaptionChoice = "auto"
    """Where an image has several, in the lines of its text or a list: first; random (another each time it is shown);
    joined; auto: all lines of a text as one caption, of a list the first."""
    background: Color = "#ffffff"
    """What shows through transparent images."""
    streaming: bool = False
    """Read local shards from front to back too, without an index."""
    shuffle_buffer: int = Field(256, gt=0)
    """Streams only: encoded images that each partition is shuffled in."""
    timeout: float = Field(30, gt=0)
    """Streams only: seconds without an answer or data after which a connection is opened again."""
    retries: int = Field(5, ge=0)
    """Streams only: how many times in a row, without progress between them."""


def loss(shard: str, whole: int) -> tuple[str, str]:
    """Returns what reports call the part of a broken shard that is lost, which is one item; and what befell it.

    `whole`: how many samples came before.
    """
    if not whole:
        return shard, "nothing could be read"
    return f"{shard} after sample {whole}", "the rest of the shard is lost"


class SampleReader:
    """From the content of a sample's members to a Sample."""

    def __init__(self, config: ShardsConfig, require_captions: bool, min_side: int | None) -> None:
        if require_captions and config.caption_key is None:
            raise DataError("this run needs captions and caption_key is null; set it to their ending, e.g. txt")
        if config.caption_field is not None and config.caption_key != "json":
            raise DataError(
                f"caption_field {config.caption_field!r} is of a json file, caption_key is {config.caption_key}; "
                "set caption_key to json"
            )
        self._config = config
        self._require_captions = require_captions
        self._at_least = min_side
        self._background = parse_color(config.background)
        self.caption_endings = () if config.caption_key is None else (config.caption_key,)

    def sample(self, name: str, pil_image: Callable[[], bytes | None], caption: Callable[[], bytes | None]) -> Sample:
        captions = self.captions(name, caption)
        content = pil_image()
        if content is None:
            raise UnusableSample(name, f"no image: it has none of {', '.join(self._config.image_keys)} below 256 MB")
        image = decode_image(content, name, self._background, min_side=self._at_least)
        return Sample(image, captions[0] if captions else None, name, captions)

    def captions(self, name: str, caption: Callable[[], bytes | None]) -> tuple[str, ...]:
        content = caption() if self.caption_endings else None
        value: Any = None
        if content is not None:
            if len(content) > _LARGEST_CAPTION_FILE:
                size = f"{len(content):,} bytes, more than the limit of {_LARGEST_CAPTION_FILE:,}"
                raise UnusableSample(name, f"its caption file has {size}")
            try:
                value = content.decode("utf-8-sig")
                if self._config.caption_key == "json":
                    value = json.loads(value)
            except (ValueError, RecursionError) as error:
                kind = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "valid JSON"
                raise UnusableSample(name, f"its caption file is not {kind}") from None
            if self._config.caption_field is not None:
                value = value.get(self._config.caption_field) if isinstance(value, dict) else None
        return read_captions(value, self._config.captions, name, required=self._require_captions)
