"""The full, comparable set of metrics of a text-to-image model (papers.md H): what `tools/evaluate.py generator`
measures.

On validation pairs: likelihood; images generated for the captions, their prompt accuracy where a judge is known, FID,
inception score and CLIP score. On PartiPrompts: images, sheets, and CLIP scores by category and challenge. Every
metric stands with its protocol; where the weights of a network are missing, its metrics are null and say what to fetch.
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
from parti.evaluation.generated_set import (
    FIDMeter,
    PromptAccuracyMeter,
    SampleMetric,
    sample_and_measure,
    sampling_protocol,
    wanted_images,
)
from parti.evaluation.model_under_test import ModelUnderTest, load_model_under_test
from parti.evaluation.partiprompts import (
    PartiPrompt,
    generate_partiprompts,
    images_of,
    partiprompts_metrics,
    partiprompts_protocol,
    read_partiprompts,
    score_partiprompts,
    spread,
    write_sheets,
)
from parti.open_pipeline import find_pipeline
from parti.sampling.generate import SamplingConfig
from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, ConfigError, apply_options
from vqgan.data.sources.open_source import SourceConfig
from vqgan.hub.model_folder import ModelFolderError
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.metrics.fidelity import to_uint8
from vqgan.metrics.inception import GENERATED_METRICS, GeneratedInceptionMeter, InceptionV3
from vqgan.metrics.protocol import AbsentMeter, Metric
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig
from vqgan.metrics.report import MetricsReport, make_room
from vqgan.metrics.run_defaults import data_of_run, find_model, with_image_size
from vqgan.system.devices import arithmetic, device_name, usable_device
from vqgan.system.downloads import download_timeout
from vqgan.training.parallel.seeding import SEEDS


class GeneratorEvaluationConfig(Config):
    """What to evaluate, on which pairs and prompts, with which networks."""

    model: str
    """Stage-2 run folder, or a model folder."""
    image_tokenizer: str | None = None
    """Another image tokenizer of the same codes that draws, such as that of the second phase, whose decoder is larger;
    null: the model's own. Every metric's protocol says which it was."""
    out: str
    """JSON file for the metrics; its folder is made where missing."""
    data: ReferenceSetConfig | None = None
    """Pairs; by default those of the run that the model comes from. null: none, for PartiPrompts alone."""
    split: EvaluatedSplit = "val"
    """Which pairs: val, train, or all of them (for a data set that is a test set as a whole)."""
    limit: int = Field(0, ge=0)
    """Number of pairs, the first ones; 0 for all."""
    samples: int | None = Field(None, ge=0)
    """Images to draw for the captions; null: one a caption; 0: none. More than there are captions, and these come
    again with other seeds."""
    reference: SourceConfig | None = None
    """Other real images for FID; null: those of the pairs."""
    reference_split: EvaluatedSplit = "val"
    """Which images of `reference`."""
    sampling: SamplingConfig | None = None
    """How codes are drawn; null: as the model's folder recommends. A model that draws in one pass has none."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of the first image of each set; the others count up."""
    batch_size: int = Field(64, gt=0)
    """Images drawn at once; changes memory and speed, not the images."""
    inception_weights: str = "pretrained"
    """`pretrained` (torch-fidelity's, from torch.hub's cache, downloaded on first use), a path to that file, or
    `random` (untrained features: for tests and dry runs)."""
    clip: tuple[str, ...] = Field(("openai/clip-vit-large-patch14",), strict=False)
    """CLIP or SigLIP models for the CLIP score, folders or Hub names, [] for none. Not one that chose images."""
    partiprompts: str | None = None
    """PartiPrompts.tsv, with the columns Prompt, Category and Challenge; null: not drawn."""
    partiprompts_limit: int = Field(0, ge=0)
    """Number of its prompts, evenly from every category; 0 for all."""
    partiprompts_images: int = Field(1, gt=0)
    """Images of each of its prompts, at least 1."""
    partiprompts_out: str | None = None
    """Folder for its images, samples.json and sheets; null: `partiprompts` beside the metrics. An image that is
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
            raise ValueError(f"clip names a model twice: {', '.join(self.clip)}; each gives one metric, leave one out")
        if self.data is None and self.partiprompts is None:
            raise ValueError(
                "there is nothing to measure on: the model comes from no run, or data is null; give --data.source, "
                "such as '{kind: folder, path: images}', or --partiprompts FILE"
            )
        return self


def load_evaluation(options: Sequence[Option]) -> GeneratorEvaluationConfig:
    """Settings from options. What is not given of `data` is that of the run that the model comes from, what
    is not given of `sampling` is what the model recommends; the image size follows its tokenizer.

    Raises ConfigError or ModelFolderError, one line.
    """
    given = read_options(options, GeneratorEvaluationConfig)
    model = given.get("model")
    defaults: dict[str, Any] = {}
    if model is not None:
        folder, run_config = find_model(model)
        stored = find_pipeline(folder)
        if stored.sampling is not None:
            defaults["sampling"] = stored.sampling.model_dump(mode="json")
        data = data_of_run(run_config)
        if data or any(name.startswith("data.") for name in given):
            defaults["data"] = with_image_size(data, stored.image_size)
    return apply_options(GeneratorEvaluationConfig, None, given, defaults)


@torch.no_grad()
def measure_generator(config: GeneratorEvaluationConfig, progress: bool = False) -> MetricsReport:
    """All metrics; PartiPrompts' images and sheets are written on the way.

    Raises ConfigError, DataError or ModelFolderError, one line.
    """
    stored = find_pipeline(config.model)
    make_room(config.out)
    device = usable_device(config.device, "device:", torch.float64)  # codes are drawn in float64
    model_under_test = load_model_under_test(stored, config.sampling, device, config.image_tokenizer)
    _check_size(config, model_under_test)
    # Read before the long work begins: a wrong path is to be known at once.
    rows = read_partiprompts(config.partiprompts) if config.partiprompts is not None else []
    backbones = [open_backbone(name, device) for name in config.clip]
    metrics: list[Metric] = []
    if config.data is not None:
        metrics += _on_pairs(config, config.data, model_under_test, device, backbones, progress)
    if config.partiprompts is not None:
        metrics += _on_partiprompts(config, config.partiprompts, rows, model_under_test, backbones, progress)
    shared = {
        "model": model_under_test.quoted,
        "dtype": arithmetic(device),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    return MetricsReport(model_under_test.about, shared, metrics, _head(config, model_under_test, shared, metrics))


def _on_pairs(
    config: GeneratorEvaluationConfig,
    data: ReferenceSetConfig,
    model_under_test: ModelUnderTest,
    device: torch.device,
    backbones: Sequence[Backbone],
    progress: bool,
) -> Iterator[Metric]:
    """Likelihood of the pairs where the model has one, and the metrics of images generated for their captions."""
    inception = None
    missing: list[Metric] = []
    if config.samples != 0:
        try:
            with download_timeout():
                inception = GeneratedInceptionMeter(InceptionV3(config.inception_weights, device))
        except ConfigError as error:
            missing += AbsentMeter(GENERATED_METRICS, "torch-fidelity's InceptionV3", str(error)).metrics()

    pairs = ReferenceSet(data, config.split, config.limit, require_captions=True)
    likelihood = model_under_test.likelihood_meter()
    captions: list[str] = []
    with tqdm(total=pairs.expected, unit="pair", desc="pairs", disable=not progress) as bar:
        for batch in pairs.batches():
            if likelihood is not None:
                likelihood.add(batch.to(device))
            captions += batch.texts()
            if inception is not None and config.reference is None:
                inception.add_real(to_uint8(batch.images).to(device))
            bar.update(len(batch))
    nats = list(likelihood.metrics()) if likelihood is not None else []
    if not all(math.isfinite(metric.value or 0.0) for metric in nats):
        raise ModelFolderError(f"{config.model} gives logits that are no finite numbers: its weights are damaged")
    yield from _with(nats, pairs.protocol())
    if config.samples == 0:
        return

    real = pairs
    if inception is not None and config.reference is not None:
        real = ReferenceSet(data.model_copy(update={"source": config.reference}), config.reference_split, 0)
        with tqdm(total=real.expected, unit="image", desc="real images", disable=not progress) as bar:
            for batch in real.batches():
                inception.add_real(to_uint8(batch.images).to(device))
                bar.update(len(batch))
    wanted = wanted_images(captions, config.samples or len(captions), config.seed)
    check_image = caption_checker(data.source)
    meters: list[SampleMetric] = []
    if check_image is not None:
        meters.append(PromptAccuracyMeter(check_image, [prompt for prompt, _ in wanted]))
    if inception is not None:
        meters.append(FIDMeter(inception, device))
    meters += [ClipScoreMeter(backbone) for backbone in backbones]
    generated = sample_and_measure(model_under_test.generate, wanted, meters, config.batch_size, progress)
    protocol = sampling_protocol(wanted, model_under_test.sampling, len(captions))
    yield from _with([*generated, *missing], protocol | real.protocol())


def _on_partiprompts(
    config: GeneratorEvaluationConfig,
    path: str,
    rows: Sequence[PartiPrompt],
    model_under_test: ModelUnderTest,
    backbones: Sequence[Backbone],
    progress: bool,
) -> Iterator[Metric]:
    """Returns the metrics of PartiPrompts; images, samples.json and sheets are in their folder before the first one."""
    images = images_of(spread(rows, config.partiprompts_limit), len(rows), config.partiprompts_images, config.seed)
    folder = partiprompts_folder(config)
    records = generate_partiprompts(model_under_test, images, folder, config.batch_size, progress)
    write_sheets(images, folder)
    scores = score_partiprompts(images, backbones, folder, records, config.batch_size, progress)
    generated = {"sampling": model_under_test.sampling, "first_seed": config.seed}
    cut = sum(model_under_test.pipeline.text_tokenizer.is_cut([image.source.prompt for image in images]))
    protocol = partiprompts_protocol(path, images, len(rows)) | {"generated": generated | {"cut_prompts": cut}}
    return partiprompts_metrics(images, backbones, scores, protocol)


def partiprompts_folder(config: GeneratorEvaluationConfig) -> Path:
    """Returns where PartiPrompts' images go."""
    return Path(config.partiprompts_out or Path(config.out).parent / "partiprompts")


def _check_size(config: GeneratorEvaluationConfig, model_under_test: ModelUnderTest) -> None:
    size = model_under_test.pipeline.image_size
    if config.data is not None and config.data.transform.image_size != size:
        raise ConfigError(
            f"data.transform.image_size is {config.data.transform.image_size}, the model in {config.model} draws "
            f"{size}; leave it out or set it to that"
        )


def _with(metrics: Iterable[Metric], protocol: Mapping[str, Any]) -> Iterator[Metric]:
    """Yields the metrics with what their protocols have in common."""
    for metric in metrics:
        yield replace(metric, details={**metric.details, **protocol})


def _head(
    config: GeneratorEvaluationConfig,
    model_under_test: ModelUnderTest,
    shared: Mapping[str, Any],
    metrics: Sequence[Metric],
) -> list[str]:
    """Returns what stands above the table."""
    lines = [model_under_test.head]
    if config.data is not None and metrics:
        pairs = metrics[0].details["reference"]
        limited = f", the first {pairs['limit']}" if pairs["limit"] else ""
        lines.append(f"{pairs['images']} pairs, split {pairs['split']}{limited}, of {pairs['source']}")
        lines.append(f"pixels sha256 {pairs['pixels_sha256'][:16]}, captions sha256 {pairs['captions_sha256'][:16]}")
        count = pairs["images"] if config.samples is None else config.samples
        lines.append(f"{count} images generated for the captions, seeds from {config.seed} on, none picked")
    if config.partiprompts is not None:
        lines.append(f"PartiPrompts: images and sheets in {partiprompts_folder(config)}")
    sampling = ", ".join(f"{name} {value}" for name, value in model_under_test.sampling.items()) or "none, one pass"
    return [*lines, f"sampling: {sampling}; {shared['dtype']} on {shared['device']}"]
