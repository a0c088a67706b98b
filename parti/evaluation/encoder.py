"""What an encoder has learned: `tools/evaluate.py encoder`.

A linear probe and nearest neighbors on frozen features, each beside the same network before training and beside the
image itself, made small: what is no better than both has not been learned. And, where asked for, fine-tuning on few
labels beside the same network from scratch.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from parti.evaluation.dense_probe import CLASSES, Features, dense_probe
from parti.evaluation.few_labels import EPOCHS, LAYER_DECAY, LEARNING_RATE, fine_tune, right
from parti.evaluation.image_labels import SHAPES_CLASSES, CaptionClasses, shapes_attributes
from parti.evaluation.probes import NEIGHBORS, TEMPERATURE, Probed, interval, probe
from parti.mim.backbones import SwinConfig
from parti.mim.network import MaskedImageNetwork
from parti.mim.networks import load_network
from parti.mim.targets import patchify
from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, ConfigError, apply_options, read_yaml
from vqgan.data.batch import Batch
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.hub.model_folder import WEIGHTS_FILE, find_model_folder, read_model_config
from vqgan.metrics.protocol import Metric
from vqgan.metrics.reference_set import ReferenceSet, ReferenceSetConfig
from vqgan.metrics.report import MetricsReport, make_room
from vqgan.metrics.run_defaults import data_of_run, find_model, with_image_size
from vqgan.system.checksums import file_sha256
from vqgan.system.devices import arithmetic, device_name, usable_device
from vqgan.training.parallel.seeding import SEEDS

_PIXELS = 8
"""Side to which images are averaged for the baseline of pixels."""
_DENSE_TRAIN, _DENSE_VAL = 500, 256
"""Images whose patches are probed; each has as many labels as patches."""


class EncoderEvaluationConfig(Config):
    """What to evaluate, on which images."""

    model: str
    """Run folder or model folder of masked image modeling."""
    out: str
    """JSON file for the metrics; its folder is made where missing."""
    data: ReferenceSetConfig
    """Images; by default those of the run. Labels are attributes of shapes, else captions that are names of classes."""
    train_images: int = Field(3000, ge=50)
    """Training images, a sample, that the probe is fitted to and neighbors are looked up in."""
    limit: int = Field(1024, gt=0)
    """Validation images, a sample, whose labels are predicted."""
    few_labels: int = Field(0, ge=0)
    """Training images, a sample, on which the encoder is fine-tuned, and the network before training beside it;
    0: neither, as it takes minutes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of the network before training that is compared with, and of the order of images in fine-tuning."""
    device: str | None = None
    """Where the network runs: cpu, cuda, cuda:1, ...; null for cuda if there is one, else cpu."""


def load_evaluation(options: Sequence[Option]) -> EncoderEvaluationConfig:
    """Returns settings from options; what is not given is as in the run. Raises ConfigError,
    ModelFolderError."""
    given = read_options(options, EncoderEvaluationConfig)
    model = given.get("model")
    defaults: dict[str, Any] = {}
    if model is not None:
        folder, run_config = find_model(model)
        data, values = data_of_run(run_config), read_model_config(folder)
        run = read_yaml(run_config) if run_config is not None else {}
        defaults = {"seed": run["seed"]} if "seed" in run else {}
        size = (values.get("encoder") or {}).get("image_size")
        defaults["data"] = with_image_size(data, size) if isinstance(size, int) else data
    return apply_options(EncoderEvaluationConfig, None, given, defaults)


def measure_encoder(config: EncoderEvaluationConfig, progress: bool = False) -> MetricsReport:
    """All metrics. Raises ConfigError, DataError or ModelFolderError, one line."""
    folder, device = find_model_folder(config.model), usable_device(config.device, "device:")
    make_room(config.out)
    network = load_network(folder).to(device)
    size = config.data.transform.image_size
    if size != network.image_size:
        raise ConfigError(
            f"data.transform.image_size is {size}, the model in {folder} reads {network.image_size}; leave it out or "
            "set it to that"
        )
    sets = [
        ReferenceSet(config.data, "train", config.train_images, require_captions=True),
        ReferenceSet(config.data, "val", config.limit, require_captions=True),
    ]
    torch.manual_seed(config.seed)
    untrained = network.untrained().to(device).eval()
    sources = {"": network, "random_": untrained, "pixels_": None}
    features, captions = _features(sources, sets, device, progress)
    label_of, classes = _labels(config, captions[0])
    labels = [label_of(part) for part in captions]
    count = len(captions[1])
    metrics: list[Metric] = []
    for prefix, (train, test) in features.items():
        metrics += _metrics(prefix, probe(train, test, labels[0], labels[1], classes), classes, count)
    metrics += _dense_metrics(config, {"": network, "random_": untrained}, device)
    if config.few_labels:
        metrics += _fine_tuned(config, {"": network, "random_": untrained}, label_of, classes, device, progress)
    return _report(config, folder, network, sets, metrics, device)


def _features(
    sources: dict[str, MaskedImageNetwork | None], sets: Sequence[ReferenceSet], device: torch.device, progress: bool
) -> tuple[dict[str, tuple[list[Tensor], list[Tensor]]], list[list[str]]]:
    """Of each source the features by layer, of the training and the validation images; and the captions of both."""
    found: dict[str, list[list[Tensor]]] = {prefix: [] for prefix in sources}
    captions: list[list[str]] = []
    for images in sets:
        parts: dict[str, list[list[Tensor]]] = {prefix: [] for prefix in sources}
        captions.append([])
        for batch in _batches(images, device, progress):
            captions[-1] += batch.texts()
            for prefix, network in sources.items():
                parts[prefix].append(_averaged(batch.images) if network is None else pooled(network, batch.images))
        for prefix, of_batches in parts.items():
            found[prefix].append([torch.cat(layer) for layer in zip(*of_batches, strict=True)])
    return {prefix: (both[0], both[1]) for prefix, both in found.items()}, captions


@torch.no_grad()
def pooled(network: MaskedImageNetwork, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B D"]]:
    """The mean over the patches of their states after each block."""
    return [states.mean(1).float().cpu() for states in network.layer_states(images)]


def _averaged(images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B D"]]:
    return [F.adaptive_avg_pool2d(images, _PIXELS).flatten(1).cpu()]


def _batches(images: ReferenceSet, device: torch.device, progress: bool) -> Iterator[Batch]:
    with tqdm(total=images.expected, unit="image", desc="features", disable=not progress) as bar:
        for batch in images.batches():
            yield batch.to(device)
            bar.update(len(batch))


def _labels(
    config: EncoderEvaluationConfig, train_captions: Sequence[str]
) -> tuple[Callable[[Sequence[str]], dict[str, Tensor]], dict[str, int]]:
    """What gives the labels of images with these captions, and the number of classes of each."""
    if isinstance(config.data.source, ShapesConfig):
        return shapes_attributes, SHAPES_CLASSES
    number = CaptionClasses(train_captions)
    return (lambda captions: {"class": number(captions)}), {"class": len(number)}


def _metrics(prefix: str, probed: Probed, classes: dict[str, int], count: int) -> Iterator[Metric]:
    of = {
        "": "the encoder",
        "random_": "the same network before training",
        "pixels_": f"the image averaged to {_PIXELS}x{_PIXELS}",
    }[prefix]
    where = f"mean of the patches after layer {probed.layer + 1}" if prefix != "pixels_" else "pixels"
    for kind, shares, method in (
        ("probe", probed.linear, "linear probe (ridge)"),
        ("knn", probed.neighbors, f"{NEIGHBORS} nearest neighbors by cosine, T={TEMPERATURE}"),
    ):
        details = {"features": where, "layer": probed.layer + 1, "labels": list(shares)}
        mean = sum(shares.values()) / len(shares)
        name = f"{prefix}{kind}"
        if len(shares) > 1:
            yield Metric(name, mean, "", f"{method} on {of}, mean over {len(shares)} labels; {where}", details)
        for label, share in shares.items():
            line = f"{method} on {of}: {label}, one of {classes[label]}, +-{interval(share, count):.3f}"
            own = {"classes": classes[label], "interval_95": interval(share, count)}
            yield Metric(f"{name}_{label}", share, "", line, details | own)


def _dense_metrics(
    config: EncoderEvaluationConfig, networks: dict[str, MaskedImageNetwork], device: torch.device
) -> Iterator[Metric]:
    """Of shapes alone, and where a patch has features of its own: not of a Swin Transformer's last stage."""
    source, size = config.data.source, config.data.transform.image_size
    network = networks[""]
    if not isinstance(source, ShapesConfig) or isinstance(network.encoder_config, SwinConfig):
        return
    few = min(_DENSE_TRAIN, config.train_images), min(_DENSE_VAL, config.limit)
    train_set = ReferenceSet(config.data, "train", few[0], require_captions=True)
    val_set = ReferenceSet(config.data, "val", few[1], require_captions=True)
    train, test = (list(_batches(images, device, False)) for images in (train_set, val_set))
    of: dict[str, tuple[str, Features]] = {
        "": ("the encoder", networks[""].layer_states),
        "random_": ("the same network before training", networks["random_"].layer_states),
        "pixels_": ("its own pixels", lambda images: [patchify(images, network.patch_size)]),
    }
    for prefix, (what, features) in of.items():
        probed = dense_probe(features, train, test, source, size, network.patch_size)
        details = {"layer": probed.layer + 1, "train_images": sum(map(len, train)), "images": sum(map(len, test))}
        for label, share in probed.linear.items():
            line = f"linear probe of a patch that shows an object, on {what}: {label}, one of {CLASSES[label]}"
            yield Metric(f"{prefix}dense_{label}", share, "", line, details)


def _fine_tuned(
    config: EncoderEvaluationConfig,
    networks: dict[str, MaskedImageNetwork],
    label_of: Callable[[Sequence[str]], dict[str, Tensor]],
    classes: dict[str, int],
    device: torch.device,
    progress: bool,
) -> Iterator[Metric]:
    few = min(config.few_labels, config.train_images)
    train = ReferenceSet(config.data, "train", few, require_captions=True)
    batches = list(_batches(train, device, False))
    images = torch.cat([batch.images for batch in batches])
    few_rows = _on(device, label_of([caption for batch in batches for caption in batch.texts()]))
    for prefix, network in networks.items():
        decay = LAYER_DECAY if not prefix else 1.0
        classifier = fine_tune(network, images, few_rows, classes, seed=config.seed, layer_decay=decay)
        counts, place = dict.fromkeys(classes, 0), 0
        for batch in _batches(ReferenceSet(config.data, "val", config.limit, require_captions=True), device, progress):
            for name, found in right(classifier, batch.images, _on(device, label_of(batch.texts()))).items():
                counts[name] += int(found)
            place += len(batch)
        shares = {name: found / place for name, found in counts.items()}
        what = "the same network from scratch" if prefix else "the encoder"
        details = {"images": few, "epochs": EPOCHS, "layer_decay": decay, "learning_rate": LEARNING_RATE}
        method = f"{what}, fine-tuned on {few} images"
        if len(shares) > 1:
            mean = sum(shares.values()) / len(shares)
            yield Metric(f"{prefix}few_labels", mean, "", f"{method}, mean over {len(shares)} labels", details)
        for name, share in shares.items():
            own = {"classes": classes[name], "interval_95": interval(share, place)}
            line = f"{method}: {name}, one of {classes[name]}, +-{interval(share, place):.3f}"
            yield Metric(f"{prefix}few_labels_{name}", share, "", line, details | own)


def _on(device: torch.device, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: numbers.to(device) for name, numbers in labels.items()}


def _report(
    config: EncoderEvaluationConfig,
    folder: Path,
    network: MaskedImageNetwork,
    sets: Sequence[ReferenceSet],
    metrics: Sequence[Metric],
    device: torch.device,
) -> MetricsReport:
    weights = file_sha256(folder / WEIGHTS_FILE)
    size = config.data.transform.image_size
    parameters = sum(parameter.numel() for parameter in network.encoder.parameters())
    about = {"path": str(folder), "weights_sha256": weights, "image_size": size}
    shared = sets[1].protocol() | {
        "fitted_to": sets[0].protocol()["reference"],
        "model": about,
        "seed": config.seed,
        "dtype": arithmetic(device),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    head = [
        f"{folder}: an encoder of {parameters:,} weights, images of {size}x{size}, weights sha256 {weights[:16]}",
        f"fitted to {shared['fitted_to']['images']} images, tested on {shared['reference']['images']} of "
        f"{shared['reference']['source']}; {shared['dtype']} on {shared['device']}",
    ]
    return MetricsReport(about, shared, metrics, head)
