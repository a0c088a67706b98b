"""Evaluates image tokenizers: a few metrics during training, and the full, comparable set afterwards.

`evaluate_tokenizer` is the cheap one, called by training. `measure_tokenizer` takes one pass over a reference set for
PSNR, SSIM, LPIPS, rFID, inception score, the codebook's metrics and the rate, each with its protocol (papers.md H).
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, ConfigError, apply_options
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError, find_model_folder, open_model_folder
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.losses.perceptual import PerceptualConfig, PerceptualLoss
from vqgan.losses.perceptual import weights_file as perceptual_weights_file
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.metrics.codebook import CodebookMeter, perplexity, usage
from vqgan.metrics.fidelity import FidelityMeter, psnr, to_float, to_uint8
from vqgan.metrics.inception import INCEPTION_METRICS, InceptionMeter, InceptionV3
from vqgan.metrics.protocol import AbsentMeter, Meter, Metric, Reconstructions, package
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig
from vqgan.metrics.report import MetricsReport, make_room
from vqgan.metrics.run_defaults import data_of_run, find_model, with_image_size
from vqgan.metrics.sums import MetricSums
from vqgan.system.checksums import file_sha256
from vqgan.system.devices import arithmetic, device_name, usable_device
from vqgan.system.downloads import download_timeout

LPIPS_SMALLEST_IMAGE = 32
"""Smallest side in pixels that LPIPS' networks can pool."""


def evaluate_tokenizer(
    tokenizer: ImageTokenizer,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    check_image: CaptionChecker | None = None,
) -> dict[str, float]:
    """Returns the metrics of `evaluate_tokenizer_and_count`."""
    return evaluate_tokenizer_and_count(tokenizer, batches, accelerator, check_image)[0]


@torch.no_grad()
def evaluate_tokenizer_and_count(
    tokenizer: ImageTokenizer,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    check_image: CaptionChecker | None = None,
) -> tuple[dict[str, float], Int64[Tensor, "V"]]:
    """Returns the mean PSNR in dB, codebook usage and perplexity; with a judge the share of reconstructions that are
    still right; and how often each code was hit.

    `batches` are this process's share, on the tokenizer's device; the metrics are those of all processes, over the
    whole set. SSIM is left to `measure_tokenizer`: it takes about as long as the tokenizer itself.
    Raises ValueError where no process has an image.
    """
    sums = MetricSums(accelerator)
    sums.add("images", torch.zeros((), device=accelerator.device))
    for batch in batches:
        codes = tokenizer.encode(batch.images)
        reconstructions = tokenizer.decode(codes)
        sums.add("images", torch.tensor(float(len(batch)), device=codes.device))
        sums.add("psnr", psnr(reconstructions, batch.images).sum())
        sums.add("codes", torch.bincount(codes.flatten(), minlength=tokenizer.vocab_size))
        if check_image is not None:
            right = sum(map(check_image, to_pil(reconstructions), batch.texts()))
            sums.add("right", torch.tensor(float(right), device=codes.device))
    totals = sums.totals()
    images = totals["images"].item()
    if not images:
        raise ValueError("no validation image to evaluate on; give at least one batch")
    counts = totals["codes"].long()
    metrics = {
        "psnr": totals["psnr"].item() / images,
        "codebook_usage": usage(counts).item(),
        "codebook_perplexity": perplexity(counts).item(),
    }
    if "right" in totals:
        metrics["reconstruction_accuracy"] = totals["right"].item() / images
    return metrics, counts


class TokenizerEvaluationConfig(Config):
    """What to evaluate, on which images, with which feature networks."""

    model: str
    """Stage-1 run folder, or a model folder."""
    out: str
    """JSON file for the metrics; its folder is made where missing."""
    data: ReferenceSetConfig
    """Images; by default those of the run that the model comes from."""
    split: EvaluatedSplit = "val"
    """Which images: val, train, or all of them (for a data set that is a test set as a whole)."""
    limit: int = Field(0, ge=0)
    """Number of images, the first ones; 0 for all."""
    lpips: tuple[PerceptualConfig, ...] = Field(
        (PerceptualConfig(backbone="alex"), PerceptualConfig(backbone="vgg")), strict=False
    )
    """LPIPS networks, [] for none: evaluate a tokenizer with another one than it was trained with. Each may have its
    file: [{backbone: alex, weights: alexnet.pth}]."""
    inception_weights: str = "pretrained"
    """`pretrained` (torch-fidelity's, from torch.hub's cache, downloaded on first use), a path to that file, or
    `random` (untrained features: for tests and dry runs)."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, ...; null for cuda if there is one, else cpu."""

    @model_validator(mode="after")
    def _check_networks_differ(self) -> "TokenizerEvaluationConfig":
        backbones = [network.backbone for network in self.lpips]
        if len(set(backbones)) < len(backbones):
            raise ValueError(
                f"lpips names a backbone twice: {', '.join(backbones)}; each gives one metric, leave one out"
            )
        return self


def load_evaluation(options: Sequence[Option]) -> TokenizerEvaluationConfig:
    """Settings from options. What is not given of `data` is that of the run that the model comes from.

    The image size follows the tokenizer. Raises ConfigError or ModelFolderError, one line.
    """
    given = read_options(options, TokenizerEvaluationConfig)
    model = given.get("model")
    defaults: dict[str, Any] = {}
    if model is not None:
        folder, run_config = find_model(model)
        size = ImageTokenizer.image_size_in(open_model_folder(folder))
        defaults["data"] = with_image_size(data_of_run(run_config), size)
    return apply_options(TokenizerEvaluationConfig, None, given, defaults)


@torch.no_grad()
def measure_tokenizer(config: TokenizerEvaluationConfig, progress: bool = False) -> MetricsReport:
    """All metrics in one pass over the images. Where weights of a feature network are missing, its metrics say so.

    Raises ConfigError, DataError or ModelFolderError, one line.
    """
    folder = find_model_folder(config.model)
    make_room(config.out)
    device = usable_device(config.device, "device:")
    tokenizer = ImageTokenizer.from_pretrained(folder).to(device)
    if config.data.transform.image_size != tokenizer.image_size:
        raise ConfigError(
            f"data.transform.image_size is {config.data.transform.image_size}, the tokenizer in {config.model} reads "
            f"{tokenizer.image_size}; leave it out or set it to that"
        )
    reference = ReferenceSet(config.data, config.split, config.limit)
    rate = ThroughputMeter(tokenizer, device, config.data.batch_size)
    meters = _meters(config, tokenizer, device)
    codes_per_image = 0
    with tqdm(total=reference.expected, unit="image", desc="evaluating", disable=not progress) as bar:
        for batch in reference.batches():
            images = batch.images.to(device)
            codes, reconstructions = rate.reconstruct(images)
            if not reconstructions.isfinite().all():
                raise ModelFolderError(
                    f"{folder} decodes to pixels that are no finite numbers: its weights are damaged"
                )
            rounded = _rounded(images, reconstructions, codes)
            for meter in meters:
                meter.add(rounded)
            codes_per_image = codes.shape[1]
            bar.update(len(images))
    metrics = [metric for meter in meters for metric in meter.metrics()]
    model = {
        "path": str(folder),
        "weights_sha256": file_sha256(folder / WEIGHTS_FILE),
        "config": json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")),
        "image_size": tokenizer.image_size,
        "vocab_size": tokenizer.vocab_size,
        "codes_per_image": codes_per_image,
    }
    shared = reference.protocol() | {
        "rounding": "originals and reconstructions clamped and rounded to uint8 before they are compared",
        "dtype": arithmetic(device),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    names = ("path", "weights_sha256", "image_size", "vocab_size", "codes_per_image")
    quoted = {"model": {name: model[name] for name in names}}
    return MetricsReport(model, shared | quoted, [*metrics, *rate.metrics()], _head(model, shared))


def _head(model: Mapping[str, Any], shared: Mapping[str, Any]) -> list[str]:
    reference = shared["reference"]
    limited = f", the first {reference['limit']}" if reference["limit"] else ""
    return [
        f"{model['path']}: {model['codes_per_image']} of {model['vocab_size']} codes an image of "
        f"{model['image_size']}x{model['image_size']}, weights sha256 {model['weights_sha256'][:16]}",
        f"{reference['images']} images, split {reference['split']}{limited}, of {reference['source']}",
        f"pixels sha256 {reference['pixels_sha256'][:16]}; crop {shared['crop']}; {shared['resize']}",
        f"{shared['rounding']}; {shared['dtype']} on {shared['device']}",
    ]


class ThroughputMeter:
    """Encodes and decodes, and keeps the time. The first batch goes through once before, so that nothing is warming."""

    def __init__(self, tokenizer: ImageTokenizer, device: torch.device, batch_size: int) -> None:
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size
        self._images = 0
        self._seconds = 0.0
        self._warm = False

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and reconstructions of images on the device."""
        if not self._warm:
            self._tokenizer.decode(self._tokenizer.encode(images, check_range=False))
            self._warm = True
        self._wait()
        start = time.perf_counter()
        codes = self._tokenizer.encode(images, check_range=False)
        reconstructions = self._tokenizer.decode(codes)
        self._wait()
        self._seconds += time.perf_counter() - start
        self._images += len(images)
        return codes, reconstructions

    def metrics(self) -> Iterator[Metric]:
        method = f"encode + decode, batches of {self._batch_size} on the device already, after one to warm up"
        details = {
            "batch_size": self._batch_size,
            "seconds": self._seconds,
            "evaluator": "vqgan.evaluation.ThroughputMeter",
        }
        yield Metric("images_per_second", self._images / self._seconds, "images/s", method, details)

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


class PerceptualMeter:
    """Mean LPIPS distance. Raises ConfigError where the network's weights cannot be had."""

    def __init__(self, config: PerceptualConfig, device: torch.device) -> None:
        self._config = config
        self._loss = PerceptualLoss(config).to(device)
        self._sum = 0.0
        self._images = 0

    def add(self, batch: Reconstructions) -> None:
        """A batch's mean counts as often as it has images."""
        self._sum += self._loss(batch.reconstructions, batch.originals).item() * len(batch.codes)
        self._images += len(batch.codes)

    def metrics(self) -> Iterator[Metric]:
        import lpips

        backbone = self._config.backbone
        linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth"
        details: dict[str, Any] = {"evaluator": f"{package('lpips')}, version 0.1", "backbone": backbone}
        details["linear_layers_sha256"] = file_sha256(linear)
        warning = ""
        if self._config.weights == "random":
            details |= {"weights": "random", "seed": self._config.seed}
            warning = "untrained network: compares with nothing"
        else:
            path = perceptual_weights_file(self._config)
            details |= {"weights": path.name, "weights_sha256": file_sha256(path)}
        value = self._sum / self._images
        yield Metric(lpips_name(self._config), value, "", lpips_method(self._config), details, warning=warning)


def lpips_name(config: PerceptualConfig) -> str:
    """Returns the metric's name: LPIPS values of two backbones do not compare."""
    return f"lpips_{config.backbone}"


def lpips_method(config: PerceptualConfig) -> str:
    """Returns the metric's method."""
    return f"mean LPIPS distance ({config.backbone}), images in [-1, 1], no resize"


def _meters(config: TokenizerEvaluationConfig, tokenizer: ImageTokenizer, device: torch.device) -> list[Meter]:
    meters: list[Meter] = [FidelityMeter()]
    for network in config.lpips:
        name, method = lpips_name(network), lpips_method(network)
        if tokenizer.image_size < LPIPS_SMALLEST_IMAGE:
            missing = f"needs images of {LPIPS_SMALLEST_IMAGE} pixels at least, the tokenizer's have "
            meters.append(AbsentMeter([name], method, f"{missing}{tokenizer.image_size}"))
            continue
        try:
            with download_timeout():
                meters.append(PerceptualMeter(network, device))
        except ConfigError as error:
            # The message speaks of the training section; here the weights stand in the list of networks.
            meters.append(AbsentMeter([name], method, str(error).replace("perceptual.", "lpips.")))
    try:
        with download_timeout():
            meters.append(InceptionMeter(InceptionV3(config.inception_weights, device)))
    except ConfigError as error:
        meters.append(AbsentMeter(INCEPTION_METRICS, "torch-fidelity's InceptionV3", str(error)))
    meters.append(CodebookMeter(tokenizer.vocab_size))
    return meters


def _rounded(images: Tensor, reconstructions: Tensor, codes: Tensor) -> Reconstructions:
    originals, made = to_uint8(images), to_uint8(reconstructions)
    return Reconstructions(to_float(originals), to_float(made), originals, made, codes)
