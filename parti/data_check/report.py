"""The results of a check as text for a person and as JSON for a program."""

import dataclasses
import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from parti.data_check.check import DataReport, SplitReport
from parti.data_check.scan import PROPORTIONS, SizeStats
from parti.data_check.targets import writing_target
from parti.text.caption_stats import CaptionMetrics
from vqgan.data.source import Split
from vqgan.data.sources.mixture import MixtureConfig
from vqgan.data.sources.open_source import SourceConfig
from vqgan.data.unused import unused_lines

_PLACES = ("path", "name")
_NAMES = 4
"""Names shown of each kind; the JSON report has all."""
_CHARACTERS = 200
"""Characters shown of an alphabet."""
_WIDTH = 110
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")


def report_text(findings: DataReport) -> str:
    """Returns the report for the screen: metrics first, problems last."""
    blocks = [_heading(findings), _table(findings)]
    unused = [line for text in unused_lines(findings.unused) for line in _wrapped("", text)]
    blocks += [_broken(findings), "\n".join(unused), _duplicates(findings)]
    blocks.append(_captions(findings.captions, findings.several) if findings.captions else "captions: none")
    blocks.append(_verdict(findings))
    return "\n\n".join(filter(None, blocks))


def report_json(findings: DataReport) -> dict[str, Any]:
    """Returns all metrics and names."""

    def split(found: SplitReport) -> dict[str, Any]:
        return {
            "total": found.total,
            "looked_at": found.seen,
            "usable": len(found.stats),
            "without_caption": found.without_caption,
            "sizes": dataclasses.asdict(found.sizes) if found.sizes else None,
            "broken": [{"name": item.name, "cause": item.cause} for item in found.broken],
        }

    return {
        "data": findings.config.data.model_dump(mode="json"),
        "interrupted": findings.interrupted,
        "problems": findings.problems(),
        "splits": {name: split(found) for name, found in findings.splits.items()},
        "unused": [dataclasses.asdict(unused) for unused in findings.unused],
        "exact_duplicates": findings.duplicates,
        "near_duplicates": findings.near,
        "val_and_trained_on": [{"val": one, "train": other} for one, other in findings.shared],
        "captions": dataclasses.asdict(findings.captions) if findings.captions else None,
        "images_with_several_captions": findings.several,
    }


def write_report(findings: DataReport, path: str) -> None:
    """The JSON report. Raises CannotWriteError."""
    text = json.dumps(report_json(findings), indent=2, ensure_ascii=False)
    with writing_target("report", path):
        Path(path).write_text(text + "\n", encoding="utf-8")


def _heading(findings: DataReport) -> str:
    data = findings.config.data
    side = data.transform.image_size
    title = textwrap.shorten(_described(data.source), _WIDTH, placeholder=" ...")
    return f"{title}, as {side} x {side} (crop: {data.transform.crop})"


def _described(source: SourceConfig) -> str:
    """Returns the kind of a source and its settings that are not at their defaults."""
    if isinstance(source, MixtureConfig):
        parts = [f"{part.weight:g} x {_described(part.source)}" for part in source.sources]
        return f"mixture of {', '.join(parts)}"
    given = source.model_dump(mode="json", exclude_defaults=True)
    return " ".join(
        [source.kind, *(str(value) if key in _PLACES else f"{key} {value}" for key, value in given.items())]
    )


def _table(findings: DataReport) -> str:
    splits = findings.splits
    side = findings.config.data.transform.image_size
    counts: dict[str, Callable[[SplitReport], str]] = {
        "items": lambda found: "unknown" if found.total is None else f"{found.total:,}",
        "looked at": lambda found: f"{found.seen:,}",
        "usable": lambda found: _part(len(found.stats), found.seen),
        "broken": lambda found: _part(len(found.broken), found.seen),
        "without caption": lambda found: _part(found.without_caption, found.seen),
    }
    sizes: dict[str, Callable[[SizeStats, int], str]] = {
        "smallest image": lambda metrics, _: "{} x {}".format(*metrics.smallest),
        "median shorter side": lambda metrics, _: f"{metrics.median_shorter_side}",
        "largest image": lambda metrics, _: "{} x {}".format(*metrics.largest),
        f"enlarged to {side} x {side}": lambda metrics, usable: _part(metrics.enlarged, usable),
        **{name: partial(_proportion, name) for name in PROPORTIONS},
        "area that the crop keeps": lambda metrics, _: f"{metrics.shown_share:.0%}",
    }
    rows = [["", *splits]]
    rows += [[name, *map(cell, splits.values())] for name, cell in counts.items()]
    for name, size_cell in sizes.items():
        cells = [size_cell(found.sizes, len(found.stats)) if found.sizes else "-" for found in splits.values()]
        if name not in PROPORTIONS or set(cells) - {"0", "-"}:
            rows.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _proportion(name: str, metrics: SizeStats, usable: int) -> str:
    return _part(metrics.proportions[name], usable)


def _broken(findings: DataReport) -> str:
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, found in findings.splits.items():
        for item in found.broken:
            # Causes that differ only in a path are of one kind.
            kinds[_QUOTED.sub("...", item.cause)].append((f"{split} {item.name}", item.cause))
    if not kinds:
        return ""
    lines = [f"broken: {sum(map(len, kinds.values())):,}"]
    for kind, items in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
        names, causes = zip(*items, strict=True)
        lines += [f"  {len(names):,} x {kind if len(set(causes)) > 1 else causes[0]}", f"      {_some(names)}"]
    return "\n".join(lines)


def _duplicates(findings: DataReport) -> str:
    def named(entry: tuple[Split, str]) -> str:
        return " ".join(entry)

    surplus = sum(len(group) - 1 for group in findings.duplicates)
    lines = [f"exact copies: {surplus:,}" + (f" (in {len(findings.duplicates):,} groups)" if surplus else "")]
    lines += [f"  {_some([named(entry) for entry in group], ' = ')}" for group in findings.duplicates[:_NAMES]]
    if findings.shared:
        pairs = [f"val {one} = train {other}" for one, other in findings.shared]
        lines.append(f"held out, but also trained on: {len(pairs):,}")
        lines += [*(f"  {pair}" for pair in pairs[:_NAMES]), _more(pairs)]
    if findings.near is None:
        reason = "not looked for" if not findings.config.near_duplicates else "too many images to compare"
        lines.append(f"near copies: {reason}")
    else:
        across = sum(one[0] != other[0] for one, other in findings.near)
        lines.append(
            f"near copies: {len(findings.near):,} pairs" + (f", {across:,} of them across the splits" if across else "")
        )
        # Duplicates across the splits first: they matter most.
        pairs = [
            f"{named(one)} ~ {named(other)}"
            for one, other in sorted(findings.near, key=lambda pair: pair[0][0] == pair[1][0])
        ]
        lines += [*(f"  {pair}" for pair in pairs[:_NAMES]), _more(pairs)]
    return "\n".join(filter(None, lines))


def _captions(metrics: CaptionMetrics, several: tuple[int, int] | None) -> str:
    lines = [
        f"captions: {metrics.captions:,}, {metrics.different:,} different",
        f"  tokens: {metrics.fewest} to {metrics.most}, median {metrics.median}, 99% have at most "
        f"{metrics.most_of_99_percent}; the limit is {metrics.length}",
        f"  cut: {_part(metrics.cut, metrics.captions)}, {metrics.lost_share:.2%} of all tokens lost",
        f"  longest: {textwrap.shorten(metrics.longest, 90, placeholder=' ...')}",
        *_wrapped(f"  alphabet, {len(metrics.alphabet)}: ", _shown(list(metrics.alphabet))),
    ]
    if metrics.rare:
        lines += _wrapped(f"  once or twice, {len(metrics.rare)}: ", _shown(metrics.rare))
    if several and several[0]:
        text = (
            f"{several[0]:,} of the first {several[1]:,} training images have several lines or texts; as "
            "data.source.captions is auto, lines are shown as one caption, and of a list the first: random shows all"
        )
        lines += _wrapped("  several captions: ", text)
    unknown = _shown(list(metrics.unknown)) if metrics.unknown else "none"
    suffix = f" (in {metrics.with_unknown:,} captions)" if metrics.unknown else ""
    lines += _wrapped(f"  unknown to the vocabulary, {len(metrics.unknown)}: ", unknown + suffix)
    return "\n".join(lines)


def _verdict(findings: DataReport) -> str:
    problems = findings.problems()
    lines = [line for problem in problems for line in _wrapped("problem: ", problem)]
    if findings.interrupted:
        lines.append("interrupted: the metrics are of what was looked at until then")
    elif not problems:
        lines.append("no problems found")
    return "\n".join(lines)


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if count and whole and count < whole else f"{count:,}"


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - _NAMES
    return between.join(names[:_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _more(lines: Sequence[str]) -> str:
    return f"  and {len(lines) - _NAMES:,} more" if len(lines) > _NAMES else ""


def _shown(characters: Sequence[str]) -> str:
    """Returns characters separated by spaces; invisible ones by their code point."""
    visible = [
        character if character.isprintable() and character != " " else f"U+{ord(character):04X}"
        for character in characters[:_CHARACTERS]
    ]
    more = len(characters) - _CHARACTERS
    return " ".join(visible) + (f" and {more:,} more" if more > 0 else "")


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
