"""The full, comparable set of figures of a text-to-image model (SPEC H): what `tools/evaluate.py generator` measures.

On held-out pairs: likelihood; pictures drawn for the captions, their prompt accuracy where a judge is known, FID,
inception score and CLIP score. On PartiPrompts: pictures, sheets, and CLIP scores by category and challenge. Every
figure stands with its protocol; where the weights of a network are missing, its figures are null and say what to fetch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from parti.evaluation.clip_score import Backbone, ClipScoreMeter, open_backbone
from parti.evaluation.drawn_set import (
    DrawnMeter,
    PromptAccuracyMeter,
    RealismMeter,
    draw_and_measure,
    drawn_protocol,
    wanted_pictures,
)
from parti.evaluation.partiprompts import (
    PartiPrompt,
    draw_partiprompts,
    partiprompts_figures,
    partiprompts_protocol,
    pictures_of,
    read_partiprompts,
    score_partiprompts,
    spread,
    write_sheets,
)
from parti.evaluation.subject import Subject, defaults_of, open_subject
from parti.sampling.generate import SamplingConfig
from vqgan.config import Config, ConfigError, load_config
from vqgan.data.sources import SourceConfig
from vqgan.devices import arithmetic, device_name, usable_device
from vqgan.downloads import impatient
from vqgan.metrics.fidelity import to_uint8
from vqgan.metrics.inception import DRAWN_FIGURES, DrawnInceptionMeter, InceptionV3
from vqgan.metrics.judge import caption_judge
from vqgan.metrics.protocol import AbsentMeter, Figure
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig
from vqgan.metrics.report import MetricsReport, make_room
from vqgan.metrics.run_defaults import data_of_run, find_model, option, with_image_size
from vqgan.model_folder import ModelFolderError, find_model_folder
from vqgan.training.seeding import SEEDS


class GeneratorEvaluationConfig(Config):
    """What to evaluate, on which pairs and prompts, with which networks."""

    model: str
    """Stage-2 run folder, or a model folder."""
    image_tokenizer: str | None = None
    """Another image tokenizer of the same codes that draws, such as that of the second phase, whose decoder is larger;
    null: the model's own. Every figure's protocol says which it was."""
    out: str
    """JSON file for the figures; its folder is made where missing."""
    data: ReferenceSetConfig | None = None
    """Pairs; by default those of the run that the model comes from. null: none, for PartiPrompts alone."""
    split: EvaluatedSplit = "heldout"
    """Which pairs: heldout, train, or all of them (for a data set that is a test set as a whole)."""
    limit: int = Field(0, ge=0)
    """Number of pairs, the first ones; 0 for all."""
    samples: int | None = Field(None, ge=0)
    """Pictures to draw for the captions; null: one a caption; 0: none. More than there are captions, and these come
    again with other seeds."""
    reference: SourceConfig | None = None
    """Other real pictures for FID; null: those of the pairs."""
    reference_split: EvaluatedSplit = "heldout"
    """Which pictures of `reference`."""
    sampling: SamplingConfig | None = None
    """How codes are drawn; null: as the model's folder recommends. A model that draws in one pass has none."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of the first picture of each set; the others count up."""
    batch_size: int = Field(64, gt=0)
    """Pictures drawn at once; changes memory and speed, not the pictures."""
    inception_weights: str = "pretrained"
    """`pretrained` (torch-fidelity's, from torch.hub's cache, downloaded on first use), a path to that file, or
    `random` (untrained features: for tests and dry runs)."""
    clip: tuple[str, ...] = Field(("openai/clip-vit-large-patch14",), strict=False)
    """CLIP or SigLIP models for the CLIP score, folders or Hub names, [] for none. Not one that chose pictures."""
    partiprompts: str | None = None
    """PartiPrompts.tsv, with the columns Prompt, Category and Challenge; null: not drawn."""
    partiprompts_limit: int = Field(0, ge=0)
    """Number of its prompts, evenly from every category; 0 for all."""
    partiprompts_images: int = Field(1, gt=0)
    """Pictures of each of its prompts, at least 1."""
    partiprompts_out: str | None = None
    """Folder for its pictures, samples.json and sheets; null: `partiprompts` beside the figures. A picture that is
    there with the same settings is not drawn again."""
    device: str | None = None
    """Where the networks run: cpu, cuda, cuda:1, ...; null for cuda if there is one, else cpu."""

    @field_validator("clip", mode="before")
    @classmethod
    def _take_one_name(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_there_is_something_to_measure(self) -> "GeneratorEvaluationConfig":
        if len(set(self.clip)) < len(self.clip):
            raise ValueError(f"clip names a model twice: {', '.join(self.clip)}; each gives one figure, leave one out")
        if self.data is None and self.partiprompts is None:
            raise ValueError(
                "there is nothing to measure on: the model comes from no run, or data is null; give --data.source, "
                "such as '{kind: folder, path: pictures}', or --partiprompts FILE"
            )
        return self


def load_evaluation(overrides: Sequence[str]) -> GeneratorEvaluationConfig:
    """Settings from command line words. What is not given of `data` is that of the run that the model comes from, what
    is not given of `sampling` is what the model recommends; the picture size follows its tokenizer.

    Raises ConfigError or ModelFolderError, one line.
    """
    model = option(overrides, "model")
    defaults: dict[str, Any] = {}
    if model is not None:
        folder, run_config = find_model(model)
        sampling, image_size = defaults_of(folder)
        defaults = {"sampling": sampling} if sampling else {}
        data = data_of_run(run_config)
        if data or any(word.startswith("--data.") for word in overrides):
            defaults["data"] = with_image_size(data, image_size)
    return load_config(GeneratorEvaluationConfig, None, overrides, defaults)


@torch.no_grad()
def measure_generator(config: GeneratorEvaluationConfig, progress: bool = False) -> MetricsReport:
    """All figures; PartiPrompts' pictures and sheets are written on the way.

    Raises ConfigError, DataError or ModelFolderError, one line.
    """
    folder = find_model_folder(config.model)
    make_room(config.out)
    device = usable_device(config.device, "device:", torch.float64)  # codes are drawn in float64
    subject = open_subject(folder, config.sampling, device, config.image_tokenizer)
    _check_size(config, subject)
    # Read before the long work begins: a wrong path is to be known at once.
    rows = read_partiprompts(config.partiprompts) if config.partiprompts is not None else []
    backbones = [open_backbone(name, device) for name in config.clip]
    figures: list[Figure] = []
    if config.data is not None:
        figures += _on_pairs(config, config.data, subject, device, backbones, progress)
    if config.partiprompts is not None:
        figures += _on_partiprompts(config, config.partiprompts, rows, subject, backbones, progress)
    shared = {
        "model": subject.quoted,
        "dtype": arithmetic(device),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    return MetricsReport(subject.about, shared, figures, _head(config, subject, shared, figures))


def _on_pairs(
    config: GeneratorEvaluationConfig,
    data: ReferenceSetConfig,
    subject: Subject,
    device: torch.device,
    backbones: Sequence[Backbone],
    progress: bool,
) -> Iterator[Figure]:
    """Likelihood of the pairs where the model has one, and the figures of pictures drawn for their captions."""
    inception = None
    missing: list[Figure] = []
    if config.samples != 0:
        try:
            with impatient():
                inception = DrawnInceptionMeter(InceptionV3(config.inception_weights, device))
        except ConfigError as error:
            missing += AbsentMeter(DRAWN_FIGURES, "torch-fidelity's InceptionV3", str(error)).figures()

    pairs = ReferenceSet(data, config.split, config.limit, require_captions=True)
    captions: list[str] = []
    with tqdm(total=pairs.expected, unit="pair", desc="pairs", disable=not progress) as bar:
        for batch in pairs.batches():
            if subject.likelihood is not None:
                subject.likelihood.add(batch.to(device))
            captions += batch.texts()
            if inception is not None and config.reference is None:
                inception.add_real(to_uint8(batch.images).to(device))
            bar.update(len(batch))
    nats = list(subject.likelihood.figures()) if subject.likelihood is not None else []
    if not all(math.isfinite(figure.value or 0.0) for figure in nats):
        raise ModelFolderError(f"{config.model} gives logits that are no finite numbers: its weights are damaged")
    yield from _with(nats, pairs.protocol())
    if config.samples == 0:
        return

    real = pairs
    if inception is not None and config.reference is not None:
        real = ReferenceSet(data.model_copy(update={"source": config.reference}), config.reference_split, 0)
        with tqdm(total=real.expected, unit="image", desc="real pictures", disable=not progress) as bar:
            for batch in real.batches():
                inception.add_real(to_uint8(batch.images).to(device))
                bar.update(len(batch))
    wanted = wanted_pictures(captions, config.samples or len(captions), config.seed)
    judge = caption_judge(data.source)
    meters: list[DrawnMeter] = []
    if judge is not None:
        meters.append(PromptAccuracyMeter(judge, [prompt for prompt, _ in wanted]))
    if inception is not None:
        meters.append(RealismMeter(inception, device))
    meters += [ClipScoreMeter(backbone) for backbone in backbones]
    drawn = draw_and_measure(subject.draw, wanted, meters, config.batch_size, progress)
    protocol = drawn_protocol(wanted, subject.sampling, len(captions))
    yield from _with([*drawn, *missing], protocol | real.protocol())


def _on_partiprompts(
    config: GeneratorEvaluationConfig,
    path: str,
    rows: Sequence[PartiPrompt],
    subject: Subject,
    backbones: Sequence[Backbone],
    progress: bool,
) -> Iterator[Figure]:
    """The figures of PartiPrompts; pictures, samples.json and sheets are in their folder before the first one."""
    pictures = pictures_of(spread(rows, config.partiprompts_limit), len(rows), config.partiprompts_images, config.seed)
    folder = partiprompts_folder(config)
    records = draw_partiprompts(subject, pictures, folder, config.batch_size, progress)
    write_sheets(pictures, folder)
    scores = score_partiprompts(pictures, backbones, folder, records, config.batch_size, progress)
    drawn = {"sampling": dict(subject.sampling), "first_seed": config.seed}
    cut = sum(subject.text_tokenizer.is_cut([picture.source.prompt for picture in pictures]))
    protocol = partiprompts_protocol(path, pictures, len(rows)) | {"drawn": drawn | {"cut_prompts": cut}}
    return partiprompts_figures(pictures, backbones, scores, protocol)


def partiprompts_folder(config: GeneratorEvaluationConfig) -> Path:
    """Where PartiPrompts' pictures go."""
    return Path(config.partiprompts_out or Path(config.out).parent / "partiprompts")


def _check_size(config: GeneratorEvaluationConfig, subject: Subject) -> None:
    size = subject.image_size
    if config.data is not None and config.data.transform.image_size != size:
        raise ConfigError(
            f"data.transform.image_size is {config.data.transform.image_size}, the model in {config.model} draws "
            f"{size}; leave it out or set it to that"
        )


def _with(figures: Iterable[Figure], protocol: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures with what their protocols have in common."""
    for figure in figures:
        yield replace(figure, details={**figure.details, **protocol})


def _head(
    config: GeneratorEvaluationConfig, subject: Subject, shared: Mapping[str, Any], figures: Sequence[Figure]
) -> list[str]:
    """What stands above the table."""
    lines = [subject.head]
    if config.data is not None and figures:
        pairs = figures[0].details["reference"]
        limited = f", the first {pairs['limit']}" if pairs["limit"] else ""
        lines.append(f"{pairs['pictures']} pairs, split {pairs['split']}{limited}, of {pairs['source']}")
        lines.append(f"pixels sha256 {pairs['pixels_sha256'][:16]}, captions sha256 {pairs['captions_sha256'][:16]}")
        count = pairs["pictures"] if config.samples is None else config.samples
        lines.append(f"{count} pictures drawn for the captions, seeds from {config.seed} on, none picked")
    if config.partiprompts is not None:
        lines.append(f"PartiPrompts: pictures and sheets in {partiprompts_folder(config)}")
    sampling = ", ".join(f"{name} {value}" for name, value in subject.sampling.items()) or "none, one pass"
    return [*lines, f"sampling: {sampling}; {shared['dtype']} on {shared['device']}"]
