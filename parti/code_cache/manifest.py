"""`cache.json`: what a code cache holds and was made from, for people and for the runs that read it."""

import json
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
"""Version of the order in which data sets list their items; caches of another are complete or made anew."""
MAKE_THE_REST = "run the same command again: it makes what is missing"
"""What is said to do once whatever kept a cache from being written is mended."""


class TokenizerRecord(Config):
    """The image tokenizer of the codes."""

    fingerprint: str
    """Of what decides the codes, not of the decoder (`ImageTokenizer.codes_fingerprint`). Earlier versions have the
    SHA-256 of its files (`vqgan.stored_tokenizer.files_fingerprint`)."""
    grid: tuple[int, int]
    """Code grid (h, w) of an image."""
    vocab_size: int
    """Number of codes."""
    image_size: int
    """Side of the images that it reads, in pixels."""

    def differs_from(self, tokenizer: ImageTokenizer, folder: str | Path) -> str:
        """In what the tokenizer, which was read from `folder`, gives other codes, in words; nothing where it does not.

        One with another decoder gives the same.
        """
        ours = CodesFingerprint.parse(self.fingerprint)
        if ours is not None:
            return ours.differs_from(tokenizer.codes_fingerprint())
        return (
            "" if files_fingerprint(folder) == self.fingerprint else "its files, of which earlier versions know alone"
        )


class TextRecord(Config):
    """The text tokenizer of the ids; it lies beside cache.json."""

    config: dict[str, Any]
    """The section `text` that it was made by."""
    fingerprint: str
    """SHA-256 of text_tokenizer.json."""
    length: int
    """Text positions T."""
    vocab_size: int
    """Number of ids."""


class SkippedRecord(Config):
    """An image that could not be used."""

    split: Split
    """Where it belongs."""
    position: int
    """Its number in the split."""
    name: str
    """What it is called."""
    cause: str
    """Why it could not be used."""


class UnusedRecord(Config):
    """One kind of thing that lay in the data set's location and was not used; fields as in `vqgan.data.unused`."""

    count: int
    """How many there were."""
    what: str
    """What they are."""
    reason: str
    """Why they were not used."""
    examples: tuple[str, ...] = Field((), strict=False)
    """Names of the first few."""
    lost: bool
    """Whether it may be data that was meant to be used."""


class SplitRecord(Config):
    """One split."""

    positions: int | None
    """Items that the source has, usable or not; null: a stream that has not been read to its end."""
    parts: tuple[int, ...] = Field((), strict=False)
    """Of a mixture: items of each of its data sets, which lie one after the other."""
    images: int = 0
    """Usable ones, once all shards are there."""
    shards: int = 0
    """Number of shards, once all are there."""


class CacheRecord(Config):
    """All that cache.json says."""

    version: Literal[1] = 1
    """Of this layout."""
    item_order: int = 1
    """In which order the data set listed its items then; 1 where it is not said."""
    complete: bool = False
    """Whether all shards are there."""
    image_tokenizer: TokenizerRecord
    """What made the codes."""
    text_tokenizer: TextRecord | None
    """What made the text ids; null: there are none."""
    source: SourceConfig
    """The data set."""
    transform: TransformConfig
    """From any image to the square that was encoded."""
    views: int
    """Versions of each training image; validation images have one."""
    seed: int
    """Of crops and mirroring."""
    shard_size: int
    """Positions of a split in one shard."""
    splits: dict[Split, SplitRecord]
    """By name."""
    skipped: tuple[SkippedRecord, ...] = Field((), strict=False)
    """What could not be used."""
    unused: tuple[UnusedRecord, ...] = Field((), strict=False)
    """What lay in the data set's location and was not used."""


def write_record(folder: Path, record: CacheRecord) -> None:
    """Put cache.json in place, whole or not at all."""
    path = folder / CACHE_FILE
    with writing(path, MAKE_THE_REST):
        write_file(path, (json.dumps(record.model_dump(mode="json"), indent=2) + "\n").encode())


def read_record(folder: Path) -> CacheRecord:
    """The parsed cache.json. Raises DataError where there is none or it is not ours."""
    path = folder / CACHE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"no code cache in {str(folder)!r}: {CACHE_FILE} is missing; make one with tools/encode_dataset.py"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; make the cache anew") from None
    if not isinstance(values, dict) or values.get("version") != 1:
        version = values.get("version") if isinstance(values, dict) else None
        raise DataError(f"{path} has version {version!r}, this program reads version 1; make the cache anew")
    try:
        return validate(CacheRecord, values, str(path))
    except ConfigError as error:
        raise DataError(f"{error}; make the cache anew") from None


def unused_records(found: Iterable[Unused]) -> tuple[UnusedRecord, ...]:
    """What a data set passed over, to be kept."""
    return tuple(UnusedRecord(**asdict(unused)) for unused in found)


def shard_path(folder: Path, split: Split, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{split}-{number:05d}.arrow"


def shards_there(folder: Path, split: Split) -> set[int]:
    """Numbers of the shards that are there."""
    return {int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{split}-*.arrow")}
