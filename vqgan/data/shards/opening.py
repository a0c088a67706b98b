"""Opening tar shards: which they are, and how they are read."""

from vqgan.data.shards.indexed import Shards
from vqgan.data.shards.names import find_shards, is_address
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.shards.streamed import ShardStream
from vqgan.data.source import DataError, Split


def open_shards(
    config: ShardsConfig, split: Split, *, require_captions: bool = False, at_least: int | None = None
) -> Shards | ShardStream:
    """The split with an index where all its shards are local, else as a stream. Raises DataError as those do."""
    shards, chosen = _shards_of_split(config, split)
    if config.streaming or any(is_address(shard) for shard in shards):
        return ShardStream(config, shards, chosen, require_captions=require_captions, at_least=at_least)
    return Shards(config, shards, chosen, require_captions=require_captions, at_least=at_least)


def _shards_of_split(config: ShardsConfig, split: Split) -> tuple[list[str], Split | None]:
    patterns = [*([config.path] if config.path is not None else []), *config.paths]
    if not patterns:
        raise DataError("no shards: set path to a tar file, a folder of them, a glob or braces {000..127}")
    shards = find_shards(patterns)
    if not config.heldout_paths:
        return shards, split
    heldout = find_shards(config.heldout_paths)
    if both := sorted(set(shards) & set(heldout)):
        raise DataError(f"shard {both[0]!r} is in path and in heldout_paths: what is held out is not trained on")
    return (heldout if split == "heldout" else shards), None
