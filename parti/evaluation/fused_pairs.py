"""Validation metrics of the fused models that read images and captions: `tools/evaluate.py captioner` and `inpainter`.

They are the metrics of training's own evaluations, by the same functions, on any pairs and each with its protocol.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import nn
from tqdm import tqdm

from parti.fused.captioning.captioner import Captioner
from parti.fused.captioning.decoding import MOST_ROUNDS
from parti.fused.captioning.evaluation import evaluate_captioner
from parti.fused.captioning.metrics import can_compare_texts
from parti.fused.inpainting.corruption import CorruptionConfig
from parti.fused.inpainting.evaluation import evaluate_inpainter
from parti.fused.inpainting.inpainter import Inpainter
from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, ConfigError, apply_options, read_yaml
from vqgan.data.batch import Batch
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, find_model_folder, read_model_config
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.metrics.protocol import AbsentMeter, Metric, package
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig
from vqgan.metrics.report import MetricsReport, make_room
from vqgan.metrics.run_defaults import data_of_run, find_model, with_image_size
from vqgan.system.checksums import file_sha256
from vqgan.system.devices import arithmetic, device_name, usable_device
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.parallel.seeding import SEEDS

ConfigT = TypeVar("ConfigT", bound="PairsEvaluationConfig")


class PairsEvaluationConfig(Config):
    """What to evaluate, on which pairs."""

    model: str
    """Run folder or model folder."""
    out: str
    """JSON file for the metrics; its folder is made where missing."""
    data: ReferenceSetConfig
    """Images and captions; by default those of the run that the model comes from."""
    split: EvaluatedSplit = "val"
    """Which pairs: val, train, or all of them (for a data set that is a test set as a whole)."""
    limit: int = Field(0, ge=0)
    """Number of pairs, the first ones; 0 for all."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of what is hidden or drafted; by default that of the run."""
    device: str | None = None
    """Where the network runs: cpu, cuda, cuda:1, ...; null for cuda if there is one, else cpu."""


class CaptionerEvaluationConfig(PairsEvaluationConfig):
    """A captioner's."""

    rounds: int = Field(2, ge=0, le=MOST_ROUNDS)
    """Rounds of refinement; each has its metric."""


class InpainterEvaluationConfig(PairsEvaluationConfig):
    """An inpainter's."""

    corruption: CorruptionConfig = CorruptionConfig()
    """Holes and hidden words; by default those of the run."""


_CAPTIONER_METHODS = {
    "exact_row_": "share of images that the caption behind this row describes, unrefined, by a checker of pixels",
    "exact_round_": "the same behind row 14 after so many rounds of refinement",
    "nats_row_": "mean cross-entropy of a word behind this row, given the image, the draft and the words before",
    "bleu_": "corpus BLEU with the data set's caption as the one reference, lower-cased words",
    "cider": "mean CIDEr-D with the data set's caption as the one reference",
    "meteor_like": "mean METEOR without synonyms, with the data set's caption as the one reference",
}
_INPAINTER_METHODS = {
    "hole_l1": "mean absolute difference in large holes, images in [0, 1], filled by the image's caption",
    "hole_l1_wrong_caption": "the same with the caption of another image",
    "word_accuracy": "share of the words of long hidden spans that are told beside the image",
    "word_accuracy_without_image": "the same beside a gray image",
    "hole_color": "share of objects, cut out, that have their color again",
    "hole_color_wrong_caption": "the same, filled by the caption of another image",
    "color_words": "share of hidden color words that are told, each hidden alone",
    "color_words_without_image": "the same beside a gray image",
    "both_color_words": "the same beside the image, both of a caption hidden at once",
}


def load_captioner_evaluation(options: Sequence[Option]) -> CaptionerEvaluationConfig:
    """Settings from options; what is not given is as in the run. Raises ConfigError, ModelFolderError."""
    return _load(CaptionerEvaluationConfig, options, {"rounds": "rounds"})


def load_inpainter_evaluation(options: Sequence[Option]) -> InpainterEvaluationConfig:
    """Settings from options; what is not given is as in the run. Raises ConfigError, ModelFolderError."""
    return _load(InpainterEvaluationConfig, options, {"corruption": "corruption"})


def measure_captioner(config: CaptionerEvaluationConfig, progress: bool = False) -> MetricsReport:
    """All metrics. Raises ConfigError, DataError or ModelFolderError, one line."""
    folder, device = _prepared(config)
    captioner = Captioner.from_pretrained(folder).to(device)
    pairs = _pairs(config, folder, captioner.config.image_size)
    batches = _batches(pairs, device, progress)
    check_image = caption_checker(config.data.source)
    values = evaluate_captioner(captioner, batches, build_accelerator(), config.rounds, config.seed, check_image)
    details: dict[str, Any] = {"rounds": config.rounds, "seed": config.seed}
    metrics = list(_metrics(values, _CAPTIONER_METHODS, details))
    if not can_compare_texts():
        lack = "the libraries of the extra `captions` are not installed: pip install 'parti-toolkit[captions]'"
        texts = AbsentMeter(
            ("bleu_1", "bleu_4", "cider", "meteor_like"), "shared words with the data set's caption", lack
        )
        metrics += texts.metrics()
    return _report(config, folder, captioner, pairs, metrics, device)


def measure_inpainter(config: InpainterEvaluationConfig, progress: bool = False) -> MetricsReport:
    """All metrics. Raises ConfigError, DataError or ModelFolderError, one line."""
    folder, device = _prepared(config)
    inpainter = Inpainter.from_pretrained(folder).to(device)
    pairs = _pairs(config, folder, inpainter.image_size)
    batches = _batches(pairs, device, progress)
    shapes = isinstance(config.data.source, ShapesConfig)
    values = evaluate_inpainter(inpainter, batches, build_accelerator(), config.corruption, config.seed, shapes)
    details = {"corruption": config.corruption.model_dump(mode="json"), "seed": config.seed}
    metrics = list(_metrics(values, _INPAINTER_METHODS, details))
    return _report(config, folder, inpainter.network, pairs, metrics, device)


def _load(kind: type[ConfigT], options: Sequence[Option], of_task: Mapping[str, str]) -> ConfigT:
    """`of_task`: settings of the run's task that are settings here."""
    given = read_options(options, kind)
    model = given.get("model")
    defaults: dict[str, Any] = {}
    if model is not None:
        folder, run_config = find_model(model)
        data = data_of_run(run_config)
        run = read_yaml(run_config) if run_config is not None else {}
        task = run.get("task") or {}
        defaults = {name: task[key] for name, key in of_task.items() if key in task}
        defaults |= {"seed": run["seed"]} if "seed" in run else {}
        values = read_model_config(folder)
        size = values.get("image_size", (values.get("trunk") or {}).get("image_size"))
        defaults["data"] = with_image_size(data, size) if isinstance(size, int) else data
    return apply_options(kind, None, given, defaults)


def _prepared(config: PairsEvaluationConfig) -> tuple[Path, torch.device]:
    folder = find_model_folder(config.model)
    make_room(config.out)
    return folder, usable_device(config.device, "device:")


def _pairs(config: PairsEvaluationConfig, folder: Path, image_size: int) -> ReferenceSet:
    size = config.data.transform.image_size
    if size != image_size:
        raise ConfigError(
            f"data.transform.image_size is {size}, the model in {folder} reads {image_size}; leave it out or set it to "
            "that"
        )
    return ReferenceSet(config.data, config.split, config.limit, require_captions=True)


def _batches(pairs: ReferenceSet, device: torch.device, progress: bool) -> Iterator[Batch]:
    with tqdm(total=pairs.expected, unit="pair", desc="evaluating", disable=not progress) as bar:
        for batch in pairs.batches():
            yield batch.to(device)
            bar.update(len(batch))


def _metrics(values: Mapping[str, float], methods: Mapping[str, str], details: Mapping[str, Any]) -> Iterable[Metric]:
    """In the order of `methods`; a method's key is the whole name, or its beginning before the number."""
    for key, method in methods.items():
        for name, value in values.items():
            if name == key or name.rstrip("0123456789") == key:
                own = {"evaluator": package("pycocoevalcap")} if key in ("bleu_", "cider") else {}
                unit = "nats" if name.startswith("nats") else ""
                yield Metric(name, value, unit, method, {**details, **own})


def _report(
    config: PairsEvaluationConfig,
    folder: Path,
    network: nn.Module,
    pairs: ReferenceSet,
    metrics: Sequence[Metric],
    device: torch.device,
) -> MetricsReport:
    weights = file_sha256(folder / WEIGHTS_FILE)
    size = config.data.transform.image_size
    parameters = sum(parameter.numel() for parameter in network.parameters())
    about = {"path": str(folder), "weights_sha256": weights, "image_size": size}
    shared = pairs.protocol() | {
        "model": about,
        "dtype": arithmetic(device),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    reference = shared["reference"]
    limited = f", the first {reference['limit']}" if reference["limit"] else ""
    head = [
        f"{folder}: {parameters:,} weights, images of {size}x{size}, weights sha256 {weights[:16]}",
        f"{reference['images']} pairs, split {reference['split']}{limited}, of {reference['source']}",
        f"pixels sha256 {reference['pixels_sha256'][:16]}, captions sha256 {reference['captions_sha256'][:16]}; "
        f"{shared['dtype']} on {shared['device']}",
    ]
    network_config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return MetricsReport(about | {"config": network_config, "parameters": parameters}, shared, metrics, head)
