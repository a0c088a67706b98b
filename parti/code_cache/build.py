"""Writes and checks a cache's manifest: before its first shard, after its last, and when a build is resumed."""

from collections.abc import Iterable
from pathlib import Path

from parti.code_cache.manifest import (
    CACHE_FILE,
    ITEM_ORDER,
    MAKE_THE_REST,
    SPLITS,
    CacheRecord,
    SkippedRecord,
    SplitRecord,
    TextRecord,
    TokenizerRecord,
    read_record,
    shard_path,
    unused_records,
    write_record,
)
from parti.code_cache.settings import EncodeConfig
from parti.code_cache.shard import Shard
from parti.code_cache.source import ShardedSource
from parti.text import TextConfig, TextTokenizer, build_text_tokenizer
from parti.text.run_tokenizer import vocabulary_progress
from parti.text.tokenizer import TEXT_TOKENIZER_FILE
from vqgan.config.schema import ConfigError
from vqgan.data.source import Split
from vqgan.data.unused import Unused
from vqgan.fingerprints import file_fingerprint
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.system.atomic_files import writing


def check_out(folder: Path) -> None:
    """Raises ConfigError if a file has the name of the cache's folder or of one of its parents."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ConfigError(f"out: a code cache is a folder, and {path} is a file; choose another out")
            return


def check_same_making(folder: Path, config: EncodeConfig, tokenizer: ImageTokenizer, source: ShardedSource) -> None:
    """Raises ConfigError if the folder holds a cache of other options, codes or data."""
    if not (folder / CACHE_FILE).exists():
        return
    record = read_record(folder)
    if differing := record.image_tokenizer.differs_from(tokenizer, config.tokenizer):
        raise ConfigError(
            f"out: the code cache in {folder} was made with another tokenizer than {config.tokenizer}, which differs "
            f"in {differing}; use the same to go on, or another out"
        )
    text = record.text_tokenizer
    pairs: dict[str, tuple[object, object]] = {
        "item_order": (record.item_order, ITEM_ORDER),
        "text": (text and text.config, config.text and config.text.model_dump(mode="json")),
        "data.source": (record.source.model_dump(mode="json"), config.data.source.model_dump(mode="json")),
        "data.transform": (record.transform.model_dump(mode="json"), config.data.transform.model_dump(mode="json")),
        "views": (record.views, config.views),
        "seed": (record.seed, config.seed),
        "shard_size": (record.shard_size, config.shard_size),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ConfigError(
                f"out: the code cache in {folder} was made with {name} {theirs}, this config has {ours}; use the same "
                "to go on, or another out"
            )
    for split in SPLITS:
        before, now = record.splits[split].positions, source.positions(split)
        if before is not None and now is not None and before != now:
            raise ConfigError(
                f"out: the code cache in {folder} is of {before} {split} items, the data set has {now} now; use "
                "another out"
            )


def begin_record(folder: Path, config: EncodeConfig, tokenizer: ImageTokenizer, source: ShardedSource) -> None:
    """Write the text tokenizer and the cache.json of a cache that is not complete."""
    with writing(folder, MAKE_THE_REST):
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".new-*"):
            unfinished.unlink()
    record = CacheRecord(
        item_order=ITEM_ORDER,
        image_tokenizer=TokenizerRecord(
            fingerprint=str(tokenizer.codes_fingerprint()),
            grid=tokenizer.grid,
            vocab_size=tokenizer.vocab_size,
            image_size=tokenizer.image_size,
        ),
        text_tokenizer=None if config.text is None else _text_record(folder, config.text, source),
        source=config.data.source,
        transform=config.data.transform,
        views=config.views,
        seed=config.seed,
        shard_size=config.shard_size,
        splits={split: SplitRecord(positions=source.positions(split), parts=source.parts(split)) for split in SPLITS},
        unused=unused_records(source.unused()),
    )
    write_record(folder, record)


def complete_record(folder: Path, seen: dict[Split, int], unused: Iterable[Unused]) -> CacheRecord:
    """Completes cache.json with the contents of the shards, once all are written. `seen`: positions of each split.

    `unused` may have grown since the beginning: a stream learns of it while it is read.
    """
    record = read_record(folder)
    splits, skipped = {}, []
    for split, positions in seen.items():
        shards = [Shard(path) for path in expected_shards(folder, split, positions, record.shard_size)]
        counts = {"positions": positions, "images": sum(map(len, shards)), "shards": len(shards)}
        splits[split] = record.splits[split].model_copy(update=counts)
        for shard in shards:
            skipped += [
                SkippedRecord(split=split, position=position, name=item.name, cause=item.cause)
                for position, item in shard.skipped().items()
            ]
    update = {"complete": True, "splits": splits, "skipped": tuple(skipped), "unused": unused_records(unused)}
    record = record.model_copy(update=update)
    write_record(folder, record)
    return record


def expected_shards(folder: Path, split: Split, positions: int, shard_size: int) -> list[Path]:
    """Returns the paths of the shards of so many positions."""
    return [shard_path(folder, split, number) for number in range(-(-positions // shard_size))]


def _text_record(folder: Path, text: TextConfig, source: ShardedSource) -> TextRecord:
    """Returns the text tokenizer of the cache, which is trained once and then read from its file."""

    if not (folder / CACHE_FILE).exists():
        with vocabulary_progress(source.captions) as captions:
            built = build_text_tokenizer(text, captions)
        with writing(folder / TEXT_TOKENIZER_FILE, MAKE_THE_REST):
            built.save_pretrained(folder)
    tokenizer = TextTokenizer.from_pretrained(folder)
    return TextRecord(
        config=text.model_dump(mode="json"),
        fingerprint=file_fingerprint(folder / TEXT_TOKENIZER_FILE),
        length=tokenizer.length,
        vocab_size=tokenizer.vocab_size,
    )
