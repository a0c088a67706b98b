"""Generates images for prompts into a folder: the work of `tools/sample.py`.

The folder gets `0000-00.png` (number of the prompt, number of the sample), the best of several candidates where a
reranker is given, enlarged where an upsampler is given, `grid.png` with captions, and `samples.json`. Where an image
is completed, `given.png` shows what is given of it, and it stands on the sheet before the images of each prompt. What
an earlier call wrote there under the same names is replaced, other files stay; `grid.png` and `samples.json` describe
the last call alone.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from parti.base_pipeline import GeneratedImage, OnRows, Pipeline, SampleOptions
from parti.completion import Completion, keep_top, known_where_black
from parti.open_pipeline import StoredPipeline, find_pipeline
from parti.reranker.rerank import sample_best
from parti.reranker.scorer import Scorer
from parti.sampling.generate import LARGEST_SEED, SamplingConfig
from parti.text.truncation import about_cut_prompts
from parti.upsampler.upsampler import Upsampler
from vqgan.config.options import Option, Shortcuts, read_options
from vqgan.config.schema import Config, ConfigError, apply_options
from vqgan.contact_sheet import contact_sheet
from vqgan.data.images.decode import decode_image
from vqgan.data.source import UnusableSample, printable
from vqgan.system.bounded_file import MAX_TEXT_BYTES, read_bounded
from vqgan.system.devices import usable_device

_GRID_COLUMNS = 8
_GRID_IMAGES = 256
"""More would be a sheet that no viewer opens; the first ones are shown."""
_PAUSE, _REST = 0.5, 4
"""Between two sheets of unfinished images: least seconds, and times as long as one takes, so that watching does not
hold up drawing much."""
_Captioned = tuple[Image.Image, str]
"""An image of the sheet."""
_Sample = tuple[Image.Image, dict[str, Any]]
"""An image with what its record says of it alone."""


class SampleConfig(Config):
    """What to generate, and where to write it."""

    model: str
    """Stage-2 run folder, its model folder, or a Hub name (owner/name)."""
    image_tokenizer: str | None = None
    """Another image tokenizer of the same codes for decoding, such as that of the second phase, whose decoder is
    larger: stage-1 run folder, its model folder, or a Hub name."""
    prompts: tuple[str, ...] = Field(strict=False, min_length=1)
    """Texts to draw: --prompt TEXT, as often as wanted, each as it stands."""
    prompts_file: str | None = Field(None, exclude=True)
    """A file of more prompts, one a line; blank lines are skipped."""
    n: int = Field(4, gt=0)
    """Images of each prompt, at least 1."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of each prompt's first image, at least 0; the following ones count up, candidate by candidate."""
    sampling: SamplingConfig | None = SamplingConfig()
    """Sampling settings; null for a model without codes."""
    all_scales: bool = False
    """Each image at all scales side by side, of a model that generates several at once (fused_synthesis)."""
    rerank: int = Field(1, gt=0)
    """Candidates generated for each image, at least 1, of which the best-scoring one is kept; 1 is off."""
    reranker: str | None = None
    """The reranker: run folder of tools/train_reranker.py, or any CLIP or SigLIP (folder or Hub name)."""
    image: str | None = None
    """An image to complete, its largest centered square. What stays of it stays as codes, so its pixels become the
    image tokenizer's. The rest is drawn row by row and continues what is above and to the left; it sees nothing of
    what stays below or to the right of it."""
    keep_top: float | None = Field(None, gt=0, lt=1)
    """With image: the upper share of it stays, between 0 and 1, in whole rows of codes."""
    mask: str | None = None
    """With image: a mask image, black where the image is kept and light where it is generated."""
    upsample: str | None = None
    """Run folder of an upsampler (tools/train_upsampler.py), or its model folder: it enlarges every image."""
    batch_size: int = Field(64, gt=0)
    """Batch size, at least 1; changes memory and speed, not the images."""
    watch: bool = False
    """While sampling, OUT/unfinished.png shows the images so far; it is removed at the end."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, cuda:1, ...; the command takes cuda if there is one."""
    out: str
    """Folder for the images, grid.png and samples.json; made where missing. Files of the same names are replaced,
    others stay."""

    @model_validator(mode="after")
    def _check_last_seed(self) -> "SampleConfig":
        images = self.n * self.rerank
        if self.seed + images > LARGEST_SEED + 1:
            raise ValueError(
                f"seed {self.seed} and the {images - 1} that follow it end behind {LARGEST_SEED}; give a seed of at "
                f"most {max(0, LARGEST_SEED + 1 - images)}, or draw fewer"
            )
        return self

    @model_validator(mode="after")
    def _check_reranker(self) -> "SampleConfig":
        if self.rerank > 1 and self.reranker is None:
            raise ValueError(
                f"rerank is {self.rerank} and nothing chooses among the candidates; give --reranker FOLDER"
            )
        if self.rerank == 1 and self.reranker is not None:
            raise ValueError("reranker is given and there is one candidate to choose from; give --rerank COUNT too")
        return self

    @model_validator(mode="after")
    def _check_one_scale_where_one_is_wanted(self) -> "SampleConfig":
        wanted = [name for name, given in (("rerank", self.rerank > 1), ("upsample", self.upsample)) if given]
        if self.all_scales and wanted:
            raise ValueError(f"{wanted[0]} wants one image, and all_scales makes it three; leave one of both out")
        return self

    @model_validator(mode="after")
    def _check_completion(self) -> "SampleConfig":
        what_stays = [name for name in ("keep_top", "mask") if getattr(self, name) is not None]
        if self.image is None and what_stays:
            raise ValueError(f"{what_stays[0]} says what stays of an image, and none is given; give --image FILE too")
        if self.image is not None and len(what_stays) != 1:
            found = "both keep_top and mask say" if what_stays else "nothing says"
            raise ValueError(f"image is given and {found} what stays of it; give --keep-top SHARE or --mask FILE")
        return self


def shortcuts() -> Shortcuts:
    """Returns the spellings of options: settings of sampling without their section, prompts one by one."""
    names = {name: f"sampling.{name}" for name in SamplingConfig.model_fields}
    return Shortcuts(names={"prompt": "prompts", **names}, one_by_one=("prompts",))


def load_sample_config(options: Sequence[Option]) -> tuple[SampleConfig, StoredPipeline]:
    """Returns complete settings, and the model that they are for, whose weights are unread.

    What is not given of `sampling` is what the model recommends.

    Raises ConfigError or ModelFolderError: one line.
    """
    given = read_options(options, SampleConfig, shortcuts())
    for name, meaning in (("model", "the folder of a stage-2 run"), ("out", "the folder that gets the images")):
        if given.get(name) is None:
            raise ConfigError(f"--{name} is missing: {meaning}")
    prompts = given.setdefault("prompts", [])
    if (file := given.pop("prompts_file", None)) is not None:
        prompts += read_prompts(file)
    if not prompts:
        raise ConfigError("no prompt: give --prompt TEXT, as often as you like, or --prompts-file FILE")
    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is blank; give some text after --prompt")
    # Codes are drawn in float64, which not every device has.
    given["device"] = str(usable_device(given.get("device"), "--device", torch.float64))
    stored = find_pipeline(given["model"])
    stored.check_supported(_options_given(given))
    recommended = stored.sampling
    defaults = {"sampling": recommended and recommended.model_dump()}
    return apply_options(SampleConfig, None, given, defaults), stored


def _options_given(given: Mapping[str, Any]) -> dict[str, str]:
    """Options of the command line that not every model supports -> the name that `Pipeline.unsupported` has for it."""
    named = {name.removeprefix("sampling."): "sampling" for name in given if name.startswith("sampling.")}
    pipelines_own = {"image": "completion", "keep_top": "completion", "mask": "completion", "watch": "on_rows"}
    pipelines_own |= {"image_tokenizer": "image_tokenizer", "all_scales": "all_scales"}
    named |= {name: own for name, own in pipelines_own.items() if given.get(name)}
    return {f"--{name.replace('_', '-')}": own for name, own in named.items()}


def read_prompts(path: str) -> list[str]:
    """One prompt a line, blank lines skipped. Raises ConfigError: no such file, not UTF-8, or no prompt in it."""
    try:
        # A text file's lines alone: U+2028, a vertical tab and others at which str.splitlines splits stand within them.
        text = read_bounded(path, MAX_TEXT_BYTES, pipes=True).decode("utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except OSError as error:
        raise ConfigError(f"prompts file {path!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"prompts file {path!r} is not text in UTF-8") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts file {path!r} is empty; write one prompt a line")
    return prompts


def write_samples(config: SampleConfig, stored: StoredPipeline, progress: bool = False) -> list[dict[str, Any]]:
    """Samples, and writes each image as soon as it is there. Returns what samples.json holds.

    A prompt that is longer than the model reads gives a line on standard error.
    Raises ModelFolderError for a damaged model or a folder without a reranker or an upsampler, ConfigError for an image
    or mask that does not serve, and when `config.out` cannot be written.
    """
    model = stored.load(config.image_tokenizer).to(config.device)
    scorer = Scorer.from_pretrained(config.reranker).to(config.device) if config.reranker is not None else None
    upsampler = Upsampler.from_pretrained(config.upsample).to(config.device) if config.upsample is not None else None
    about_upsampler = "" if upsampler is None else upsampler.note_on(model.image_tokenizer)
    completion = _completion(config, model)
    for line in [*about_cut_prompts(config.prompts, model.text_tokenizer), *filter(None, [about_upsampler])]:
        sys.stderr.write(printable(f"note: {line}") + "\n")
    with _writing_to(config.out) as folder:
        given = _write_given(completion, model, folder)
        with _watching(folder, config.watch) as on_rows:
            options = SampleOptions(config.sampling, completion, on_rows, config.all_scales)
            samples = _samples(model, scorer, config, options, progress)
            records, shown = _write_images(samples, upsampler, _record_of_all(config, completion, upsampler), folder)
        _sheet(shown, config.n, given).save(folder / "grid.png")
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        (folder / "samples.json").write_text(text, encoding="utf-8")
    return records


def _completion(config: SampleConfig, model: Pipeline) -> Completion | None:
    if config.image is None or model.image_tokenizer is None:
        return None
    return Completion(_read_image("image", config.image), _what_stays(config, model.image_tokenizer.grid))


@contextmanager
def _writing_to(out: str) -> Iterator[Path]:
    """Makes the folder. Raises ConfigError for an OSError within."""
    try:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ConfigError(f"cannot write to {out!r}: {error.strerror or error}") from None


def _write_given(completion: Completion | None, model: Pipeline, folder: Path) -> _Captioned | None:
    """Writes given.png where an image is completed. Returns it with a caption."""
    if completion is None or model.image_tokenizer is None:
        return None
    image = completion.shown(model.image_tokenizer, model.image_tokenizer.device)
    image.save(folder / "given.png")
    return image, f"given: {completion.share:.0%} of the codes"


def _samples(
    model: Pipeline, scorer: Scorer | None, config: SampleConfig, options: SampleOptions, progress: bool
) -> Iterator[_Sample]:
    """Each image with what its record says of it alone; with a reranker the best candidate, which has a seed of its
    own."""
    # Candidate j of image i has seed + i * rerank + j.
    requests = [(prompt, config.seed + i * config.rerank) for prompt in config.prompts for i in range(config.n)]
    best: Iterator[tuple[GeneratedImage, float | None]]
    if scorer is None:
        stream = model.stream(requests, options, batch_size=config.batch_size, progress=progress)
        best = ((generated, None) for generated in stream)
    else:
        kept = sample_best(
            model, scorer, requests, config.rerank, options, batch_size=config.batch_size, progress=progress
        )
        best = ((one.generated, one.score) for one in kept)
    for index, (generated, score) in enumerate(best):
        file = f"{index // config.n:04d}-{index % config.n:02d}.png"
        record: dict[str, Any] = {"file": file, "prompt": generated.prompt, "seed": generated.seed}
        if score is not None:
            record["rerank"] = {"model": config.reranker, "candidates": config.rerank, "score": score}
        yield generated.image, record


def _record_of_all(config: SampleConfig, completion: Completion | None, upsampler: Upsampler | None) -> dict[str, Any]:
    """What samples.json says of every image alike."""
    record: dict[str, Any] = {}
    if config.image_tokenizer is not None:
        record["image_tokenizer"] = config.image_tokenizer
    if config.sampling is not None:
        record["settings"] = config.sampling.model_dump(mode="json")
    if completion is not None:
        what_stays = config.model_dump(include={"image", "keep_top", "mask"}, exclude_none=True)
        record["completion"] = {**what_stays, "kept": completion.share}
    if upsampler is not None:
        record["upsample"] = {"model": config.upsample, "scale": upsampler.config.scale}
    return record


def _write_images(
    samples: Iterable[_Sample], upsampler: Upsampler | None, of_all: Mapping[str, Any], folder: Path
) -> tuple[list[dict[str, Any]], list[_Captioned]]:
    """Writes each image, enlarged where there is an upsampler. Returns all records, and what the sheet shows."""
    records: list[dict[str, Any]] = []
    shown: list[_Captioned] = []
    for sample, record in samples:
        image = sample if upsampler is None else upsampler.enlarge(sample)
        image.save(folder / record["file"])
        records.append({**record, **of_all})
        if len(shown) < _GRID_IMAGES:
            shown.append((image, record["prompt"]))
    return records, shown


def _sheet(shown: Sequence[_Captioned], n: int, given: _Captioned | None) -> Image.Image:
    """Images with captions; what is given of an image stands before the `n` of each prompt."""
    cells, row = list(shown), n
    if given is not None:
        cell = given[0].resize(shown[0][0].size, Image.Resampling.NEAREST), given[1]
        cells = [each for start in range(0, len(shown), n) for each in (cell, *shown[start : start + n])]
        row += 1
    # A row a prompt, where that makes a sheet of a usual shape.
    columns = row if n > 1 and row <= _GRID_COLUMNS else _GRID_COLUMNS
    return contact_sheet([image for image, _ in cells], [caption for _, caption in cells], columns=columns)


@contextmanager
def _watching(folder: Path, wanted: bool) -> Iterator[OnRows | None]:
    """What keeps unfinished.png up to date: written aside and then put in place, so that a viewer reads a whole one."""
    if not wanted:
        yield None
        return
    path, partial = folder / "unfinished.png", folder / ".unfinished.png"
    due = 0.0

    def show(begun: Callable[[], list[GeneratedImage]], _rows: int) -> None:
        nonlocal due
        started = time.monotonic()
        if started >= due:
            generated = begun()[:_GRID_IMAGES]
            sheet = contact_sheet(
                [one.image for one in generated], [one.prompt for one in generated], columns=_GRID_COLUMNS
            )
            sheet.save(partial, compress_level=1)
            partial.replace(path)
            now = time.monotonic()
            due = now + max(_PAUSE, _REST * (now - started))

    try:
        yield show
    finally:
        for file in (partial, path):
            file.unlink(missing_ok=True)


def _read_image(option: str, path: str) -> Image.Image:
    try:
        return decode_image(Path(path), path)
    except UnusableSample as error:
        raise ConfigError(f"{option} {error}; give another file") from None


def _what_stays(config: SampleConfig, grid: tuple[int, int]) -> Bool[Tensor, "h w"]:
    if config.keep_top is not None:
        return keep_top(grid, config.keep_top)
    assert config.mask is not None  # SampleConfig has checked that one of both is given
    keep = known_where_black(_read_image("mask", config.mask), grid)
    if keep.all():
        raise ConfigError(f"mask {config.mask} is black all over, so there is nothing to draw; make some of it white")
    if not keep.any():
        height, width = grid
        raise ConfigError(
            f"mask {config.mask} leaves none of {height}x{width} codes all black, so nothing stays of the image; "
            "make some of it black, or draw without --image"
        )
    return keep
