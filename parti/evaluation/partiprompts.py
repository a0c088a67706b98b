"""PartiPrompts (arXiv 2206.10789, section 4 and appendix): images, sheets and scores by category and challenge.

The paper's evaluation is by people who compare two images side by side. A CLIP score is only a proxy of it.
The prompts are read from the released TSV file: Prompt, Category, Challenge, Note.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from parti.evaluation.clip_score import Backbone
from parti.evaluation.model_under_test import ModelUnderTest
from parti.evaluation.sample_in_parts import sample_in_parts
from parti.sampling.generate import SamplingConfig
from vqgan.config.schema import ConfigError
from vqgan.contact_sheet import contact_sheet
from vqgan.metrics.protocol import Metric
from vqgan.metrics.reference_set import captions_sha256
from vqgan.system.bounded_file import MAX_TEXT_BYTES, read_bounded
from vqgan.system.checksums import file_sha256

COLUMNS = ("Prompt", "Category", "Challenge")
RECORDS_FILE = "samples.json"
_SHEET_COLUMNS, _SHEET_IMAGES = 8, 120
"""Largest number of images on one sheet; further ones go to the next sheet."""
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_PROXY = "a proxy: the paper's own metrics are votes of people who see two images side by side"


@dataclass(frozen=True)
class PartiPrompt:
    """One row of the file; `number` counts from 0."""

    number: int
    prompt: str
    category: str
    challenge: str


@dataclass(frozen=True)
class PartiImage:
    """An image to generate, and its file."""

    source: PartiPrompt
    file: str
    seed: int


def read_partiprompts(path: str | Path) -> list[PartiPrompt]:
    """All rows of the file. Raises ConfigError: cannot be read, a column is missing, or a row has no prompt."""
    try:
        # Quotation marks are text here: the file is not a quoted CSV.
        lines = read_bounded(path, MAX_TEXT_BYTES).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise ConfigError(f"partiprompts: {str(path)!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"partiprompts: {str(path)!r} is not text in UTF-8") from None
    names = [name.strip() for name in lines[0].split("\t")] if lines else []
    if lacking := [name for name in COLUMNS if name not in names]:
        found = ", ".join(names)[:100] or "none"
        raise ConfigError(f"partiprompts: {path} has no column {' and '.join(lacking)}; its first line has: {found}")
    prompts = []
    for number, line in enumerate(line for line in lines[1:] if line.strip()):
        values = dict(zip(names, map(str.strip, line.split("\t")), strict=False))
        if not all(values.get(name) for name in COLUMNS):
            raise ConfigError(f"partiprompts: {path}: row {number} lacks one of {', '.join(COLUMNS)}: {line[:80]!r}")
        prompts.append(PartiPrompt(number, *(values[name] for name in COLUMNS)))
    if not prompts:
        raise ConfigError(f"partiprompts: {path} holds no prompt")
    return prompts


def spread(prompts: Sequence[PartiPrompt], limit: int) -> list[PartiPrompt]:
    """Returns `limit` prompts, evenly from the categories and from all over each, in the order of the file; 0 for all.

    The prompts of a larger limit include those of a smaller one.
    """
    if not limit:
        return list(prompts)
    queues = []
    for group in grouped(prompts, lambda prompt: prompt.category).values():
        # The fractional parts of multiples of the golden ratio are evenly spread for any count.
        order = sorted(range(len(group)), key=lambda place: place * _GOLDEN_RATIO % 1)
        queues.append([group[place] for place in order])
    rounds = zip_longest(*queues)  # each category gives one more, as long as it has one
    in_turn = [prompt for one_each in rounds for prompt in one_each if prompt is not None]
    return sorted(in_turn[:limit], key=lambda prompt: prompt.number)


def images_of(prompts: Sequence[PartiPrompt], rows: int, images: int, seed: int) -> list[PartiImage]:
    """Returns the images to generate. Names and seeds depend only on the number of the row (of `rows`) and of the
    image: another limit, or more images per prompt, does not change them."""
    return [
        PartiImage(prompt, f"{prompt.number:04d}-{number:02d}.png", seed + number * rows + prompt.number)
        for prompt in prompts
        for number in range(images)
    ]


def generate_partiprompts(
    model_under_test: ModelUnderTest,
    images: Sequence[PartiImage],
    folder: Path,
    batch_size: int,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Generates the images that `folder` does not hold yet for the same prompt, seed, settings and weights. Returns
    every record of samples.json, by file.

    samples.json is written after every batch, so an interrupted run resumes. Raises ConfigError if nothing can be
    written.
    """
    same = {"settings": model_under_test.sampling, **model_under_test.identity}
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        records = _read_records(folder)
        pending = []
        for image in images:
            record = _record(image, same)
            if not _is_same(records.get(image.file, {}), record) or not (folder / image.file).is_file():
                records.pop(image.file, None)
                pending.append((image, record))
        _write_records(folder, records)  # drop the old records of images that are generated again
    wanted = [(image.source.prompt, image.seed) for image, _ in pending]
    todo = iter(pending)
    for part in sample_in_parts(model_under_test.generate, wanted, batch_size, progress):
        with _writing(folder):
            for generated, (image, record) in zip(part, islice(todo, len(part)), strict=True):
                generated.image.save(folder / image.file)
                records[image.file] = record
            _write_records(folder, records)
    return records


def score_partiprompts(
    images: Sequence[PartiImage],
    backbones: Sequence[Backbone],
    folder: Path,
    records: dict[str, dict[str, Any]],
    batch_size: int,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Computes 100 cos of each image with each available backbone, and adds them to samples.json."""
    scores: dict[str, list[float]] = {backbone.name: [] for backbone in backbones if backbone.scorer is not None}
    if not scores:
        return scores
    with tqdm(total=len(images), unit="image", desc="scoring", disable=not progress) as bar:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            opened = [_opened(folder / image.file) for image in part]
            for backbone in backbones:
                if backbone.scorer is not None:
                    scores[backbone.name] += backbone.scores(opened, [image.source.prompt for image in part])
            bar.update(len(part))
    for number, image in enumerate(images):
        cosines = {name: round(values[number], 4) for name, values in scores.items()}
        records[image.file]["clip_score"] = records[image.file].get("clip_score", {}) | cosines
    with _writing(folder):
        _write_records(folder, records)
    return scores


def partiprompts_metrics(
    images: Sequence[PartiImage],
    backbones: Sequence[Backbone],
    scores: Mapping[str, Sequence[float]],
    details: Mapping[str, Any],
) -> Iterator[Metric]:
    """Yields the number of images, and each backbone's CLIP score over all images and over each category and challenge.
    A missing backbone has one metric, which says what to fetch."""
    keys: dict[str, Callable[[PartiImage], str]] = {
        "category": lambda image: image.source.category,
        "challenge": lambda image: image.source.challenge,
    }
    cut = details["generated"]["cut_prompts"]
    warning = f"{cut} prompts are longer than the model reads; it did not see their ends" if cut else ""
    method = "images generated for PartiPrompts, in the folder above with samples.json and sheets"
    yield Metric("partiprompts_images", len(images), "", method, details, warning=warning)
    details = {**details, "proxy_for": "votes of people who see two images side by side"}
    for backbone in backbones:
        if backbone.scorer is None:
            yield backbone.metric((), "partiprompts_", details)
            continue
        found = dict(zip((image.file for image in images), scores[backbone.name], strict=True))
        yield replace(backbone.metric(list(found.values()), "partiprompts_", details), warning=_PROXY)
        for name, key in keys.items():
            for value, group in grouped(images, key).items():
                part = [found[image.file] for image in group]
                yield backbone.metric(part, f"partiprompts_{name}[{value}]_", {**details, name: value})


def write_sheets(image_list: Sequence[PartiImage], folder: Path) -> list[Path]:
    """Writes `sheet-CATEGORY.png` with the images of a category, prompts below; several if one would be too large.

    If all images fit on one sheet, `sheet.png` shows them category by category.
    """
    images = sum(image.source == image_list[0].source for image in image_list)
    columns = images if 2 <= images <= _SHEET_COLUMNS else _SHEET_COLUMNS
    size = _SHEET_IMAGES // columns * columns
    groups = grouped(image_list, lambda image: image.source.category)
    pages: dict[str, list[tuple[PartiImage, str]]] = {}
    for category, group in groups.items():
        name = "sheet-" + re.sub(r"[^a-z0-9]+", "-", category.lower()).strip("-")
        captioned = [(image, image.source.prompt) for image in group]
        for page, start in enumerate(range(0, len(group), size), 1):
            pages[f"{name}-{page}" if len(group) > size else name] = captioned[start : start + size]
    if len(image_list) <= size:
        everything = [image for group in groups.values() for image in group]
        pages["sheet"] = [(image, f"{image.source.category}: {image.source.prompt}") for image in everything]
    for name, page_of in pages.items():
        shown = [_opened(folder / image.file) for image, _ in page_of]
        sheet = contact_sheet(shown, [caption for _, caption in page_of], columns=columns)
        with _writing(folder):
            sheet.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in pages]


def partiprompts_protocol(path: str | Path, images: Sequence[PartiImage], rows: int) -> dict[str, Any]:
    """Returns the selection of prompts that a metric covers."""
    sources = list(dict.fromkeys(image.source for image in images))
    return {
        "prompts": {
            "file": Path(path).name,
            "file_sha256": file_sha256(Path(path)),
            "rows": rows,
            "chosen": len(sources),
            "choice": "all" if len(sources) == rows else "evenly over the categories, spread over each",
            "prompts_sha256": captions_sha256([source.prompt for source in sources]),
            "images_per_prompt": len(images) // len(sources),
            "seeds": "first seed + image * rows + row",
            "picked": "none: no reranking",
        }
    }


def grouped(items: Sequence[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    """Groups items by their key; keys in alphabetical order, items in their own order."""
    groups: dict[str, list[Any]] = {name: [] for name in sorted({key(item) for item in items})}
    for item in items:
        groups[key(item)].append(item)
    return groups


def _record(image: PartiImage, same: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of an image in samples.json, with the shared fields; equal records mean equal images."""
    source = image.source
    return {
        "file": image.file,
        "prompt": source.prompt,
        "category": source.category,
        "challenge": source.challenge,
        "seed": image.seed,
        **same,
    }


def _is_same(known: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Returns whether a record is of the same image. Settings that an earlier version did not have count as default."""
    defaults = SamplingConfig().model_dump(mode="json") if record["settings"] else {}
    settings = defaults | known.get("settings", {})
    return {name: known.get(name) for name in record} | {"settings": settings} == record


def _read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the records of an earlier call; an invalid file counts as empty, so that everything is generated
    again."""
    try:
        records = json.loads((folder / RECORDS_FILE).read_text(encoding="utf-8"))
        return {record["file"]: record for record in records}
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
        return {}


def _write_records(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    text = json.dumps([records[file] for file in sorted(records)], indent=2, ensure_ascii=False) + "\n"
    partial = folder / f"{RECORDS_FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / RECORDS_FILE)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"partiprompts_out: cannot write to {str(folder)!r}: {error.strerror or error}") from None
