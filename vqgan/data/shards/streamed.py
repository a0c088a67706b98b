"""Shards that are read from front to back, in partitions: those behind an address, and local ones on request."""

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial

import numpy as np

from vqgan.data.shards.index_cache import file_version_key, read_cached, write_cached
from vqgan.data.shards.names import is_address, short_name
from vqgan.data.shards.passed_over import PassedOver, unused_of
from vqgan.data.shards.remote import LocalFile, RemoteError, RemoteFile
from vqgan.data.shards.samples import LARGEST_MEMBER, SampleReader, ShardsConfig, loss
from vqgan.data.shards.tar import BehindTheEndError, BrokenTarError, Group, Member, groups, members
from vqgan.data.source import DataError, Split
from vqgan.data.split import hash_score
from vqgan.data.stream import EncodedSample, PartitionReader, broken_sample, infinite, interleave, shards_of_partition
from vqgan.data.unused import Unused

_FAILED_SHARDS = 5
"""So many shards in a row of which nothing can be read end a run: then it is not the shards."""


class ShardStream:
    """Shards from front to back. Raises DataError when captions are required and switched off."""

    def __init__(
        self,
        config: ShardsConfig,
        shards: list[str],
        chosen: Split | None,
        *,
        require_captions: bool = False,
        min_side: int | None = None,
    ) -> None:
        self.config = config
        self.shards = shards
        self._chosen = chosen
        self._reader = SampleReader(config, require_captions, min_side)
        self._passed: dict[str, PassedOver] = {}
        self._endings = {*config.image_keys, *self._reader.caption_endings}

    def partition(self, partition: int, partitions: int, seed: int, start: int = 0) -> Iterator[EncodedSample]:
        """Returns the items of one partition from number `start` on, as Stream says. The shards are dealt among the
        partitions."""
        return infinite(
            _ShardPartition(self, partition, partitions), partition, seed, start, self.config.shuffle_buffer
        )

    def iterate(self) -> Iterator[EncodedSample]:
        """Returns every sample of the split once, shard after shard."""
        return self.read([(shard, lambda _: True) for shard in self.shards])

    @property
    def parts(self) -> int:
        """Its shards."""
        return len(self.shards)

    def is_local(self, part: int) -> bool:
        """Returns whether a shard can be read to its end in little time: in a local one images are passed over
        unread."""
        return not is_address(self.shards[part])

    def captions_of(self, part: int) -> Iterator[EncodedSample]:
        """Returns the samples of a shard, for their captions alone."""
        alone = copy(self)
        alone._endings = {*self._reader.caption_endings}
        return alone.read([(self.shards[part], lambda _: True)])

    @property
    def unused(self) -> tuple[Unused, ...]:
        """What is in the shards and part of no sample, as far as they were read."""
        return unused_of(self._passed)

    def spread(self) -> Iterator[EncodedSample]:
        """Returns every sample of the split once, from several shards in turn."""
        return interleave([partial(self.read, [(shard, lambda _: True)]) for shard in self.shards])

    def count(self, shard: str) -> int | None:
        """Returns how many samples of the split a shard holds, where it was once read to its end and is still the
        same."""

        def version_key() -> str:
            if not is_address(shard):
                return file_version_key(shard)
            with RemoteFile(shard, 0, self.config.timeout) as file:
                return file.version_key

        known = read_cached("scores", shard, version_key)
        return None if known is None else sum(map(self._is_chosen, known["scores"].tolist()))

    def read(self, parts: list[tuple[str, Callable[[int], bool]]]) -> Iterator[EncodedSample]:
        """Yields the `wanted` samples of shards, by their number in the split; nothing of the others is kept.

        Raises DataError when nothing at all can be read of several shards in a row.
        """
        failed = 0
        for shard, wanted in parts:
            numbers = _Numbers()
            try:
                yield from self._samples(shard, numbers, wanted)
            except (BrokenTarError, RemoteError) as error:
                failed = 0 if numbers.seen else failed + 1
                # The last sample that was begun is lost too: nobody knows whether all its members had come.
                whole = numbers.seen if isinstance(error, BehindTheEndError) else max(0, numbers.seen - 1)
                name, fate = loss(short_name(shard), whole)
                yield broken_sample(name, f"{fate}: {error}")
                if failed == _FAILED_SHARDS:
                    raise DataError(
                        f"nothing can be read of {failed} shards in a row, the last {shard!r}: {error}; check paths "
                        "and whether the server is up"
                    ) from None
            else:
                failed = 0

    def _samples(self, shard: str, numbers: "_Numbers", wanted: Callable[[int], bool]) -> Iterator[EncodedSample]:
        scores = []
        passed = self._passed[short_name(shard)] = PassedOver()

        def is_wanted(key: str) -> bool:
            numbers.seen += 1
            scores.append(hash_score(key))
            if not self._is_chosen(scores[-1]):
                return False
            numbers.of_split += 1
            return wanted(numbers.of_split - 1)

        def take(ending: str, member: Member) -> bytes | None:
            if ending not in self._endings or member.size > LARGEST_MEMBER:
                return None
            content = file.read(member.size)
            if len(content) < member.size:
                raise BrokenTarError(f"cut off in {member.name!r:.80} at byte {file.position}")
            return content

        with self._opened(shard) as file:
            for group in groups(members(file, passed), is_wanted, take, passed):
                yield self._undecoded(f"{short_name(shard)}/{group.key}", group)
            write_cached("scores", shard, file.version_key, {"scores": np.array(scores)})

    def _opened(self, shard: str) -> LocalFile | RemoteFile:
        return RemoteFile(shard, self.config.retries, self.config.timeout) if is_address(shard) else LocalFile(shard)

    def _undecoded(self, name: str, group: Group[bytes | None]) -> EncodedSample:
        if group.refused:
            return broken_sample(name, group.refused)
        image = next((group.parts[key] for key in self.config.image_keys if key in group.parts), None)
        caption = next((group.parts[key] for key in self._reader.caption_endings if key in group.parts), None)
        return EncodedSample(
            name,
            partial(self._reader.sample, name, lambda: image, lambda: caption),
            partial(self._reader.captions, name, lambda: caption),
        )

    def _is_chosen(self, score: float) -> bool:
        return self._chosen is None or (score < self.config.val_fraction) == (self._chosen == "val")


class _Numbers:
    """How far a shard is read."""

    seen = 0
    of_split = 0


class _ShardPartition(PartitionReader):
    """One partition's shards, or every n-th sample of a shard."""

    def __init__(self, stream: ShardStream, partition: int, partitions: int) -> None:
        self._stream = stream
        self._parts = shards_of_partition(len(stream.shards), partition, partitions)

    def epoch(self, order: np.random.Generator, skip: int) -> tuple[int, Iterator[EncodedSample]]:
        """Shards are left out while it is known how many samples they hold, the last of them in part."""
        parts = [self._parts[index] for index in order.permutation(len(self._parts))]
        passed = 0
        while parts and passed < skip:
            shard, first, step = parts[0]
            count = self._stream.count(self._stream.shards[shard])
            if count is None:
                break
            here = min(skip - passed, len(range(first, count, step)))
            passed += here
            parts[0] = (shard, first + here * step, step)
            if passed < skip:
                del parts[0]
        shards = self._stream.shards
        return passed, self._stream.read(
            [(shards[shard], partial(_is_in, first, step)) for shard, first, step in parts]
        )


def _is_in(first: int, step: int, number: int) -> bool:
    return number >= first and (number - first) % step == 0
