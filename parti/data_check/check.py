"""The check: one pass over both splits, then comparisons between them."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tqdm import tqdm

from parti.data_check.duplicates import exact_duplicates, near_duplicates
from parti.data_check.scan import ImageStats, SizeStats, expected_items, scan, size_stats
from parti.data_check.settings import CheckConfig
from parti.text import TextTokenizer, build_text_tokenizer
from parti.text.caption_stats import CaptionMetrics, caption_metrics
from parti.text.tokenizer import LEARNED
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.source import Source, Split, UnusableSample
from vqgan.data.sources.huggingface_files import DatasetConfig
from vqgan.data.sources.mixture import MixtureConfig
from vqgan.data.sources.open_source import SourceConfig, open_source
from vqgan.data.stream import Stream
from vqgan.data.unused import Unused, unused_in

SPLITS: tuple[Split, ...] = ("train", "val")
_LINE_EVERY = 10.0
"""Seconds between progress lines without a terminal."""
_SEVERAL_AMONG = 1000


@dataclass
class SplitReport:
    """Results for a split; `total` is its length if it is known."""

    total: int | None
    expected: int | None
    stats: list[ImageStats] = field(default_factory=list)
    broken: list[UnusableSample] = field(default_factory=list)
    sizes: SizeStats | None = None

    @property
    def seen(self) -> int:
        """Items read."""
        return len(self.stats) + len(self.broken)

    @property
    def without_caption(self) -> int:
        """Usable images without a caption."""
        return sum(not look.captions for look in self.stats)


@dataclass
class DataReport:
    """Results of a check. Names of images are (split, name)."""

    config: CheckConfig
    splits: dict[Split, SplitReport] = field(default_factory=dict)
    interrupted: bool = False
    unused: tuple[Unused, ...] = ()
    """Unused files in the data set's location."""
    duplicates: list[list[tuple[Split, str]]] = field(default_factory=list)
    """Groups of images with identical pixels."""
    shared: list[tuple[str, str]] = field(default_factory=list)
    """Validation images that are also training images, each with its name there."""
    near: list[tuple[tuple[Split, str], tuple[Split, str]]] | None = None
    """Near duplicates; None if they were not searched for."""
    captions: CaptionMetrics | None = None
    tokenizer: TextTokenizer | None = None
    """The vocabulary that the captions were tokenized with; None without captions."""
    several: tuple[int, int] | None = None
    """Number of training images, and of those with several captions, which `captions: auto` joins to one."""

    def problems(self) -> list[str]:
        """Returns the problems of the data, each with a hint; empty if there are none."""
        config, found = self.config, []
        seen = sum(split.seen for split in self.splits.values())
        broken = sum(len(split.broken) for split in self.splits.values())
        if broken > config.max_broken * seen:
            found.append(
                f"broken items: {broken:,} of {seen:,} ({broken / seen:.2%}, allowed {config.max_broken:.2%}); "
                "training passes over them: repair or remove them, or allow them with --max-broken"
            )
        lost = [unused for unused in self.unused if unused.lost]
        if (count := sum(unused.count for unused in lost)) > config.max_unused * (count + seen):
            found.append(
                f"not used although it may be meant to be: {count:,} of {count + seen:,} things ({lost[0].what}"
                f"{', ...' if len(lost) > 1 else ''}; allowed {config.max_unused:.2%}): do as the lines 'not used' "
                "say, or allow them with --max-unused"
            )
        usable = {name: len(split.stats) for name, split in self.splits.items()}
        for name, split in self.splits.items():
            if split.seen and not usable[name]:
                found.append(f"no usable image in the {name} split")
        train = self.splits.get("train")
        if train and train.total and not self.interrupted and train.total < config.data.batch_size:
            found.append(
                f"{train.total:,} training images are fewer than one batch of {config.data.batch_size}: lower "
                "data.batch_size or add images"
            )
        if len(self.shared) > config.max_shared * usable.get("val", 0):
            one, other = self.shared[0]
            found.append(
                f"validation images that are also trained on: {len(self.shared):,} (the first: {one} is {other}); "
                "metrics on validation data will flatter: remove one of each pair, or allow them with --max-shared"
            )
        metrics = self.captions
        if metrics and metrics.cut > config.max_cut * metrics.captions:
            found.append(
                f"{metrics.cut:,} of {metrics.captions:,} captions ({metrics.cut / metrics.captions:.1%}, allowed "
                f"{config.max_cut:.1%}) are longer than {metrics.length} tokens and will be cut: use a vocabulary with "
                f"a larger text.length ({metrics.most_of_99_percent} keeps 99% whole), or allow it with --max-cut"
            )
        if metrics and metrics.unknown:
            found.append(
                f"{metrics.with_unknown:,} captions hold text that the vocabulary does not know; use a vocabulary over "
                "bytes (text.kind bpe or unigram) or one of that language"
            )
        return found


def check(config: CheckConfig) -> DataReport:
    """Checks the data set; Ctrl-C ends the reading, not the report. Raises DataError if nothing can be read."""
    findings = DataReport(config)
    size = config.data.transform.image_size
    # Pretrained vocabularies are opened first: a wrong name should fail before the whole data set is read.
    tokenizer = None if config.text.kind in LEARNED else build_text_tokenizer(config.text, lambda _: [])
    sources = {
        split: open_source(config.data.source, split, size, require_captions=config.require_captions)
        for split in SPLITS
    }
    try:
        for split, source in sources.items():
            _scan(config, findings, split, source)
    except KeyboardInterrupt:
        findings.interrupted = True
    findings.unused = unused_in(*sources.values())  # only now: a stream finds them while it is read
    for found in findings.splits.values():
        found.sizes = size_stats(found.stats, config.data.transform) if found.stats else None
    _find_duplicates(findings)
    findings.several = _several_captions(config)
    findings.tokenizer = _measure_captions(findings, tokenizer)
    return findings


def _scan(config: CheckConfig, findings: DataReport, split: Split, source: Source | Stream) -> None:
    total = None if isinstance(source, Stream) else len(source)
    found = findings.splits[split] = SplitReport(total, expected_items(source, config.limit))
    for look in _with_progress(scan(source, config.limit, config.data.workers), split, found.expected):
        if isinstance(look, UnusableSample):
            found.broken.append(look)
        else:
            found.stats.append(look)
    if split != SPLITS[0] and _of_one_pool(config.data.source):
        told = {(item.name, item.cause) for item in findings.splits[SPLITS[0]].broken}
        found.broken = [item for item in found.broken if (item.name, item.cause) not in told]


def _of_one_pool(source: SourceConfig) -> bool:
    """Returns whether both splits are read from the same files, whose losses both streams report."""
    if isinstance(source, MixtureConfig):
        return all(_of_one_pool(part.source) for part in source.sources)
    return (isinstance(source, ShardsConfig) and not source.val_paths) or (
        isinstance(source, DatasetConfig) and source.val_split is None
    )


def _with_progress(
    stats: Iterator[ImageStats | UnusableSample], split: Split, expected: int | None
) -> Iterator[ImageStats | UnusableSample]:
    """Shows rate and remaining time: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(stats, desc=split, total=expected, unit=" items", dynamic_ncols=True)
        return
    start = said = time.monotonic()
    for number, look in enumerate(stats, start=1):
        yield look
        now = time.monotonic()
        if now - said > _LINE_EVERY:
            said, rate = now, number / (now - start)
            left = f", {tqdm.format_interval((expected - number) / rate)} left" if expected else ""
            of = f" of {expected:,}" if expected else ""
            tqdm.write(f"{split}: {number:,}{of} items, {rate:.0f} items/s{left}", file=sys.stderr)


def _find_duplicates(findings: DataReport) -> None:
    everything = [(split, look) for split, found in findings.splits.items() for look in found.stats]
    stats = [look for _, look in everything]
    names: list[tuple[Split, str]] = [(split, look.name) for split, look in everything]
    groups = exact_duplicates(stats)
    findings.duplicates = [[names[number] for number in group] for group in groups]
    for group in findings.duplicates:
        trained = [name for split, name in group if split == "train"]
        findings.shared += [(name, trained[0]) for split, name in group if split == "val" and trained]
    pairs = near_duplicates(stats) if findings.config.near_duplicates else None
    findings.near = None if pairs is None else [(names[one], names[other]) for one, other in pairs]


def _several_captions(config: CheckConfig) -> tuple[int, int] | None:
    """Reads the first training captions only, if the source can and `captions` is not set yet."""
    source = config.data.source
    if getattr(source, "captions", None) != "auto":
        return None
    everything = open_source(
        source.model_copy(update={"captions": "random"}), "train", config.data.transform.image_size
    )
    read = getattr(everything, "captions", None)
    if read is None or isinstance(everything, Stream):
        return None
    count = min(_SEVERAL_AMONG, len(everything))
    several = 0
    for index in range(count):
        with suppress(UnusableSample):
            several += len(read(index)) > 1
    return several, count


def _measure_captions(findings: DataReport, tokenizer: TextTokenizer | None) -> TextTokenizer | None:
    """Tokenizes captions with the run's vocabulary; a learned one is trained on the captions that a run would use."""
    train = findings.splits["train"].stats if "train" in findings.splits else []
    captions = [caption for split in findings.splits.values() for look in split.stats for caption in look.captions]
    if not captions:
        return None

    def learned_from(count: int) -> list[str]:
        return [caption for look in train[:count] for caption in look.captions] or captions

    if tokenizer is None:
        tokenizer = build_text_tokenizer(findings.config.text, learned_from)
    findings.captions = caption_metrics(captions, tokenizer)
    return tokenizer
