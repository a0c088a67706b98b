"""Training data from a code cache: a source with the same positions as the images, and both splits as batches.

Samples come in the same order as when training on images, unusable ones included: they raise UnusableSample too.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from parti.code_cache.batch import NO_IMAGE, CodedSample, read_codes
from parti.code_cache.manifest import CACHE_FILE, CacheRecord, read_record, shard_path
from parti.code_cache.shard import Shard
from parti.text.tokenizer import TEXT_TOKENIZER_FILE
from vqgan.config.schema import Config, ConfigError
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.mixture_schedule import MixtureSchedule
from vqgan.data.source import DataError, Source, Split
from vqgan.data.sources.mixture import Mixture, MixtureConfig
from vqgan.data.stream_partitions import ReadItem
from vqgan.data.unused import Unused
from vqgan.fingerprints import file_fingerprint
from vqgan.image_tokenizer import ImageTokenizer

_OPEN_SHARDS = 256
"""Largest number of open files: a process may usually open 1024."""


class PairDataConfig(DataConfig, may_change=("codes",)):
    """Source of images (or their codes) and captions, and batching."""

    codes: str | None = None
    """Folder of a code cache (tools/encode_dataset.py) to read instead of images; source and transform are then those
    of the cache."""


class CodeCache:
    """A complete code cache. Raises DataError if there is none, or an unfinished one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.record: CacheRecord = read_record(self.folder)
        if not self.record.complete:
            raise DataError(
                f"the code cache in {str(self.folder)!r} is unfinished: run tools/encode_dataset.py again with the "
                "same options to go on"
            )

    def check_tokenizer(self, tokenizer: ImageTokenizer, folder: str) -> None:
        """Raises ConfigError if the codes are those of another image tokenizer than the one from `folder`.

        Its decoder may differ from that of the tokenizer that encoded them.
        """
        if differing := self.record.image_tokenizer.differs_from(tokenizer, folder):
            raise ConfigError(
                f"data.codes: the codes in {self.folder} are not those of image_tokenizer {folder}, which differs from "
                f"the one that made them in {differing}; give that one, or one with its codes and another decoder "
                "(codes_from), or encode anew with this one"
            )

    def resolved(self, config: PairDataConfig) -> PairDataConfig:
        """Returns `config` with the cache's source and transform. Raises ConfigError if it asks for others.

        A section left at its default asks for nothing.
        """
        wanted = {"source": self.record.source, "transform": self.record.transform}
        for name, value in wanted.items():
            given: Config = getattr(config, name)
            if given not in (value, getattr(PairDataConfig(), name)):
                raise ConfigError(
                    f"data.{name} differs from that of the code cache ({_difference(given, value)}); leave it out: "
                    f"{self.folder / CACHE_FILE} has what the codes were made from, or encode anew"
                )
        return config.model_copy(update=wanted)

    def has_ids_of(self, folder: Path) -> bool:
        """Returns whether the text ids are those of the tokenizer in `folder`."""
        text = self.record.text_tokenizer
        return text is not None and text.fingerprint == file_fingerprint(folder / TEXT_TOKENIZER_FILE)


class CodedPipeline(DataPipeline):
    """Both splits of a code cache as batches of codes. Raises DataError if a shard is missing."""

    def __init__(self, config: PairDataConfig, seed: int, cache: CodeCache) -> None:
        self._cache = cache
        super().__init__(config, seed, require_captions=True)

    def _open(self, split: Split) -> Source:
        folder, record = self._cache.folder, self._cache.record
        about = record.splits[split]
        if not isinstance(record.source, MixtureConfig):
            return CachedSplit(folder, split, record, 0, about.positions or 0)
        starts = [sum(about.parts[:number]) for number in range(len(about.parts))]
        parts = [CachedSplit(folder, split, record, *at) for at in zip(starts, about.parts, strict=True)]
        return CachedMixture(parts, [part.weight for part in record.source.sources])

    def unused(self) -> tuple[Unused, ...]:
        """Returns what was skipped when the data set was encoded."""
        return tuple(Unused(**record.model_dump()) for record in self._cache.record.unused)

    def _item_reader(self) -> ReadItem:
        return read_codes


class CachedMixture(Mixture):
    """The sources of a mixture's split, mixed by the same weights as their images. Their names are in the shards."""

    def __init__(self, parts: Sequence["CachedSplit"], weights: Sequence[float]) -> None:
        self.turns = MixtureSchedule(weights)
        self.sources = list(parts)  # type: ignore[arg-type]


class CachedSplit:
    """Positions `first` ... `first + count` - 1 of a split as a source. The shards are memory-mapped."""

    def __init__(self, folder: Path, split: Split, record: CacheRecord, first: int, count: int) -> None:
        self._folder = folder
        self._split = split
        self._record = record
        self._range = range(first, first + count)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        for number in range(record.splits[split].shards):
            if not (path := shard_path(folder, split, number)).is_file():
                raise DataError(f"{path} is missing: run tools/encode_dataset.py again with the same options")

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> CodedSample:
        position = self._range[index]
        row = self._shard(position).row(position)
        return CodedSample(
            image=NO_IMAGE,
            caption=row.captions[0] if row.captions else None,
            name=row.name,
            captions=row.captions,
            codes=row.codes,
            text_ids=row.text_ids,
            text_truncated=row.text_truncated,
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions without decoding the codes."""
        position = self._range[index]
        return self._shard(position).captions(position)

    def __reduce__(self) -> tuple[object, ...]:
        """Leaves the memory maps out of the pickle: each loader worker maps the shards itself."""
        return CachedSplit, (self._folder, self._split, self._record, self._range.start, len(self._range))

    def _shard(self, position: int) -> Shard:
        number = position // self._record.shard_size
        shard = self._open.pop(number, None) or Shard(shard_path(self._folder, self._split, number))
        self._open[number] = shard
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard


def _difference(given: Config, wanted: Config) -> str:
    """Returns the first setting that differs, in both forms."""
    ours, theirs = given.model_dump(mode="json"), wanted.model_dump(mode="json")
    key = next(key for key in theirs | ours if ours.get(key) != theirs.get(key))
    return f"{key}: {ours.get(key)!r} here, {theirs.get(key)!r} there"
