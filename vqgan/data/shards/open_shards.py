"""Opening tar shards: which they are, and how they are read."""

from vqgan.data.shards.indexed import Shards
from vqgan.data.shards.names import find_shards, is_address
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.shards.streamed import ShardStream
from vqgan.data.source import DataError, Split


def open_shards(
    config: ShardsConfig, split: Split, *, require_captions: bool = False, min_side: int | None = None
) -> Shards | ShardStream:
    """Returns the split with an index where all its shards are local, else as a stream. Raises DataError as those
    do."""
    shards, chosen = _shards_of_split(config, split)
    if config.streaming or any(is_address(shard) for shard in shards):
        return ShardStream(config, shards, chosen, require_captions=require_captions, min_side=min_side)
    return Shards(config, shards, chosen, require_captions=require_captions, min_side=min_side)


def _shards_of_split(config: ShardsConfig, split: Split) -> tuple[list[str], Split | None]:
    patterns = [*([config.path] if config.path is not None else []), *config.paths]
    if not patterns:
        raise DataError("no shards: set path to a tar file, a folder of them, a glob or braces {000..127}")
    shards = find_shards(patterns)
    if not config.val_paths:
        return shards, split
    val = find_shards(config.val_paths)
    if both := sorted(set(shards) & set(val)):
        raise DataError(f"shard {both[0]!r} is in path and in val_paths: what is held out is not trained on")
    return (val if split == "val" else shards), None
