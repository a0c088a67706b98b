"""Builds a code cache: encodes a data set with the image tokenizer, in shards. `tools/encode_dataset.py` calls
`encode`.

A shard is a range of positions in a split and independent of the others. Missing shards are distributed over the
processes; a killed build leaves complete shards only, and running it again encodes the rest.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from parti.code_cache.build import begin_record, check_out, check_same_making, complete_record, expected_shards
from parti.code_cache.manifest import CACHE_FILE, SPLITS, CacheRecord, read_record, shard_path, shards_there
from parti.code_cache.settings import EncodeConfig
from parti.code_cache.shard import Row, ShardTypes, smallest_type, write_shard
from parti.code_cache.source import CropImage, ShardedSource, ShardReader, Unusable, Views
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import ConfigError
from vqgan.data.source import Split, UnusableSample, printable
from vqgan.data.unused import unused_lines
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.training.run import setup_run
from vqgan.training.stopping import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.2
_SKIPPED_SAID = 20
"""Number of skipped images named on the screen."""


def encode(config: EncodeConfig) -> bool:
    """Builds the cache, or its missing part. Returns True when complete, False when interrupted.

    Raises ConfigError, DataError, ModelFolderError or CannotWriteError with one line for the user.
    """
    folder = Path(config.out).expanduser()
    check_out(folder)
    accelerator = setup_run(config.seed)
    tokenizer = ImageTokenizer.from_pretrained(config.tokenizer)
    size = config.data.transform.image_size
    if size != tokenizer.image_size:
        raise ConfigError(
            f"data.transform.image_size is {size}, the image tokenizer in {config.tokenizer} reads "
            f"{tokenizer.image_size}; set data.transform.image_size to that"
        )
    source = ShardedSource(config.data)
    # 1. An existing cache must have the same options; every process checks before the first one writes.
    check_same_making(folder, config, tokenizer, source)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        begin_record(folder, config, tokenizer, source)
    accelerator.wait_for_everyone()
    # 2. Distribute the missing shards; every process lists them before the first one writes any.
    record = read_record(folder)
    work = _Work(config, record, tokenizer.to(accelerator.device), accelerator)
    accelerator.wait_for_everyone()
    return work.do(source)


class _Work:
    """The shards of one process."""

    def __init__(
        self, config: EncodeConfig, record: CacheRecord, tokenizer: ImageTokenizer, accelerator: Accelerator
    ) -> None:
        self._config = config
        self._record = record
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._folder = Path(config.out).expanduser()
        self._text = None if record.text_tokenizer is None else TextTokenizer.from_pretrained(self._folder)
        self._there = {split: shards_there(self._folder, split) for split in SPLITS}
        self._stop = StopRequest()

    def do(self, source: ShardedSource) -> bool:
        """Encodes all splits. Returns True when the cache is complete, False when interrupted."""
        told = unused_lines(source.unused())
        for line in told:
            self._say(line)
        answer = "encoding: stopping after this batch"
        with self._stop.listening(answer if self._accelerator.is_main_process else None):
            seen = {split: self._encode(source, split) for split in SPLITS}
            # No collective here: the slowest process may take any time.
            if self._accelerator.is_main_process:
                self._wait_for_shards(seen)
            if self._stop.made:
                self._say("stopped; the shards that are whole stay, run the same command to go on")
                return False
        if self._accelerator.is_main_process:
            record = complete_record(self._folder, seen, source.unused())
            for item in record.skipped[:_SKIPPED_SAID]:
                self._say(f"skipped {item.name}: {item.cause}")
            for line in unused_lines(source.unused()):
                if line not in told:  # a stream learned of it on the way
                    self._say(line)
            counts = ", ".join(f"{about.images} {split}" for split, about in record.splits.items())
            skipped = f"{len(record.skipped)} skipped" + (f" (all in {CACHE_FILE})" if record.skipped else "")
            self._say(f"{counts} images in {self._folder}, {skipped}")
        return True

    def _encode(self, source: ShardedSource, split: Split) -> int:
        """Encodes this process's shards of a split. Returns the number of positions of the split; None if
        interrupted."""
        config, record, tokenizer = self._config, self._record, self._tokenizer
        views = record.views if split == "train" else 1
        types = ShardTypes(
            views=views,
            codes=tokenizer.grid[0] * tokenizer.grid[1],
            code_type=smallest_type(tokenizer.vocab_size),
            text_length=None if self._text is None else self._text.length,
            text_type=smallest_type(1 if self._text is None else self._text.vocab_size),
        )
        crop = CropImage(record.transform, views, record.seed)
        part_size = max(1, config.data.batch_size // views)
        parts = ShardReader(source.split(split), crop, part_size, record.shard_size)
        share = (self._there[split], self._accelerator.process_index, self._accelerator.num_processes)
        rows: list[Row] = []
        skipped: dict[int, UnusableSample] = {}
        with self._progress(split, parts.expected(*share)) as bar:
            for part in parts.read(*share, config.data.workers):
                if self._stop.made:
                    break
                rows += self._rows([item for item in part.items if isinstance(item, Views)])
                skipped |= {item.position: item.cause for item in part.items if isinstance(item, Unusable)}
                bar.update(len(part.items))
                if part.last:
                    write_shard(shard_path(self._folder, split, part.shard), rows, skipped, types)
                    rows, skipped = [], {}
        return parts.seen

    def _rows(self, images: Sequence[Views]) -> list[Row]:
        """Returns the codes and text ids of squares."""
        if not images:
            return []
        squares = torch.cat([image.squares for image in images]).to(self._accelerator.device)
        codes = self._tokenizer.encode(squares).cpu().numpy()
        rows, views = [], len(squares) // len(images)
        for number, image in enumerate(images):
            own = codes[number * views : (number + 1) * views]
            if self._text is None:
                rows.append(Row(image.position, image.name, image.captions, own))
            else:
                ids, cut = self._text.tokenize(image.captions)
                rows.append(Row(image.position, image.name, image.captions, own, ids.numpy(), tuple(cut)))
        return rows

    def _wait_for_shards(self, seen: dict[Split, int]) -> None:
        """Waits until the other processes have written their shards."""
        for split, positions in seen.items():
            for path in expected_shards(self._folder, split, positions, self._record.shard_size):
                while not path.exists() and not self._stop.made:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _progress(self, split: Split, expected: int | None) -> "tqdm[Any]":
        """Returns rate and remaining time of the first process; all processes have equally many shards."""
        processes = self._accelerator.num_processes
        return tqdm(
            total=expected,
            desc=f"encoding {split}" + (f", 1 of {processes} processes" if processes > 1 else ""),
            unit=" images",
            disable=not self._accelerator.is_main_process or expected == 0,
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )

    def _say(self, text: str) -> None:
        if self._accelerator.is_main_process:
            tqdm.write(printable(f"encoding: {text}"), file=sys.stderr)
