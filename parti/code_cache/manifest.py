"""`cache.json`: the contents and the origin of a code cache, for people and for the runs that read it."""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vqgan.config.schema import Config, ConfigError, validate
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.source import DataError, Split
from vqgan.data.sources.open_source import SourceConfig
from vqgan.data.unused import Unused
from vqgan.image_tokenizer import CodesFingerprint, ImageTokenizer
from vqgan.stored_tokenizer import files_fingerprint
from vqgan.system.atomic_files import write_file, writing

CACHE_FILE = "cache.json"
SPLITS: tuple[Split, ...] = ("train", "val")
ITEM_ORDER = 2
"""Version of the order in which data sets list their items; an unfinished cache of another order is refused."""
MAKE_THE_REST = "run the same command again: it makes what is missing"
"""Hint for errors that prevented a cache from being written."""


class TokenizerRecord(Config):
    """The image tokenizer that encoded the codes."""

    fingerprint: str
    """Fingerprint of everything that determines the codes, without the decoder (`ImageTokenizer.codes_fingerprint`).
    Earlier versions have the SHA-256 of its files (`vqgan.stored_tokenizer.files_fingerprint`)."""
    grid: tuple[int, int]
    """Code grid (h, w) of an image."""
    vocab_size: int
    """Number of codes."""
    image_size: int
    """Side of the images that it reads, in pixels."""

    def differs_from(self, tokenizer: ImageTokenizer, folder: str | Path) -> str:
        """Returns why the tokenizer from `folder` gives other codes, in words; empty if it gives the same.

        Tokenizers that differ in the decoder only give the same codes.
        """
        ours = CodesFingerprint.parse(self.fingerprint)
        if ours is not None:
            return ours.differs_from(tokenizer.codes_fingerprint())
        return (
            "" if files_fingerprint(folder) == self.fingerprint else "its files, of which earlier versions know alone"
        )


class TextRecord(Config):
    """The text tokenizer of the ids, stored beside cache.json."""

    config: dict[str, Any]
    """The `text` section of its config."""
    fingerprint: str
    """SHA-256 of text_tokenizer.json."""
    length: int
    """Text positions T."""
    vocab_size: int
    """Number of ids."""


class SkippedRecord(Config):
    """An unusable image."""

    split: Split
    """Its split."""
    position: int
    """Its position in the split."""
    name: str
    """Its name."""
    cause: str
    """Why it is unusable."""


class UnusedRecord(Config):
    """One kind of unused file in the data set's location; fields as in `vqgan.data.unused`."""

    count: int
    """Their number."""
    what: str
    """Their kind."""
    reason: str
    """Why they are unused."""
    examples: tuple[str, ...] = Field((), strict=False)
    """Names of the first few of them."""
    lost: bool
    """Whether they may be data that should have been used."""


class SplitRecord(Config):
    """The counts of one split."""

    positions: int | None
    """Items of the source, usable or not; null for a stream that has not been read to its end."""
    parts: tuple[int, ...] = Field((), strict=False)
    """For a mixture: items of each of its data sets, which follow each other."""
    images: int = 0
    """Usable items, once all shards are written."""
    shards: int = 0
    """Number of shards, once all are written."""


class CacheRecord(Config):
    """The contents of cache.json."""

    version: Literal[1] = 1
    """Version of this layout."""
    item_order: int = 1
    """Version of the order of the data set's items; 1 if absent."""
    complete: bool = False
    """Whether all shards are written."""
    image_tokenizer: TokenizerRecord
    """The image tokenizer that encoded the codes."""
    text_tokenizer: TextRecord | None
    """The text tokenizer of the ids; null without ids."""
    source: SourceConfig
    """The data set."""
    transform: TransformConfig
    """The transform from an image to the encoded square."""
    views: int
    """Versions of each training image; validation images have one."""
    seed: int
    """Seed of crops and mirroring."""
    shard_size: int
    """Positions per shard."""
    splits: dict[Split, SplitRecord]
    """The splits by name."""
    skipped: tuple[SkippedRecord, ...] = Field((), strict=False)
    """The unusable images."""
    unused: tuple[UnusedRecord, ...] = Field((), strict=False)
    """Unused files in the data set's location."""
    crc32: int | None = None
    """Checksum of all other values as JSON with sorted keys; absent in caches of earlier versions."""


def write_record(folder: Path, record: CacheRecord) -> None:
    """Writes cache.json atomically."""
    path = folder / CACHE_FILE
    values = record.model_dump(mode="json", exclude={"crc32"})
    with writing(path, MAKE_THE_REST):
        write_file(path, (json.dumps(values | {"crc32": _crc32(values)}, indent=2) + "\n").encode())


def read_record(folder: Path) -> CacheRecord:
    """Returns the parsed cache.json. Raises DataError if there is none or it is not ours."""
    path = folder / CACHE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"no code cache in {str(folder)!r}: {CACHE_FILE} is missing; make one with tools/encode_dataset.py"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}; make the cache anew") from None
    if not isinstance(values, dict) or values.get("version") != 1:
        version = values.get("version") if isinstance(values, dict) else None
        raise DataError(f"{path} has version {version!r}, this program reads version 1; make the cache anew")
    if "crc32" in values and values.pop("crc32") != _crc32(values):
        raise DataError(
            f"{path} does not have its checksum (crc32): it is damaged, or was edited; make the cache anew, or remove "
            "the line crc32 if the change was meant"
        )
    try:
        return validate(CacheRecord, values, str(path))
    except ConfigError as error:
        raise DataError(f"{error}; make the cache anew") from None


def _crc32(values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def unused_records(found: Iterable[Unused]) -> tuple[UnusedRecord, ...]:
    """Converts the unused files of a data set for cache.json."""
    return tuple(UnusedRecord(**asdict(unused)) for unused in found)


def shard_path(folder: Path, split: Split, number: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"{split}-{number:05d}.arrow"


def shards_there(folder: Path, split: Split) -> set[int]:
    """Returns the numbers of the existing shards."""
    return {int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{split}-*.arrow")}
