"""How good an image tokenizer is: a few figures while it trains, and the full, comparable set of a finished one.

`evaluate_tokenizer` is the cheap one, called by training. `measure_tokenizer` takes one pass over a reference set for
PSNR, SSIM, LPIPS, rFID, inception score, the codebook's figures and the rate, each with its protocol (SPEC H).
"""

import json
import platform
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from vqgan.config import Config, ConfigError, load_config, read_yaml
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.losses.perceptual import PerceptualConfig, PerceptualLoss
from vqgan.losses.perceptual import weights_file as perceptual_weights_file
from vqgan.metrics.codebook import CodebookMeter, perplexity, usage
from vqgan.metrics.fidelity import FidelityMeter, psnr, to_float, to_uint8
from vqgan.metrics.inception import INCEPTION_FIGURES, InceptionMeter, InceptionV3
from vqgan.metrics.judge import Judge
from vqgan.metrics.protocol import AbsentMeter, Figure, Meter, Reconstructed, file_sha256, package, table
from vqgan.metrics.reference_set import EvaluatedSplit, ReferenceSet, ReferenceSetConfig
from vqgan.metrics.sums import MetricSums
from vqgan.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError, find_model_folder

LPIPS_SMALLEST_PICTURE = 32
"""Least side in pixels that LPIPS' networks can pool down."""
_PATIENCE = 20.0
"""Seconds to wait for an answer of a server that weights are fetched from."""


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: ImageTokenizer, batches: Iterable[Batch], accelerator: Accelerator, judge: Judge | None = None
) -> dict[str, float]:
    """Mean PSNR in dB, codebook usage and perplexity; with a judge the share of reconstructions that are still right.

    `batches` are this process's share, on the tokenizer's device; the figures are those of all processes, over the
    whole set. SSIM is left to `measure_tokenizer`: it takes about as long as the tokenizer itself.
    Raises ValueError where no process has a picture.
    """
    sums = MetricSums(accelerator)
    sums.add("pictures", torch.zeros((), device=accelerator.device))
    for batch in batches:
        codes = tokenizer.encode(batch.images)
        reconstructions = tokenizer.decode(codes)
        sums.add("pictures", torch.tensor(float(len(batch)), device=codes.device))
        sums.add("psnr", psnr(reconstructions, batch.images).sum())
        sums.add("codes", torch.bincount(codes.flatten(), minlength=tokenizer.vocab_size))
        if judge is not None:
            right = sum(map(judge, to_pil(reconstructions), batch.texts()))
            sums.add("right", torch.tensor(float(right), device=codes.device))
    totals = sums.totals()
    pictures = totals["pictures"].item()
    if not pictures:
        raise ValueError("no held-out picture to evaluate on; give at least one batch")
    counts = totals["codes"].long()
    figures = {
        "psnr": totals["psnr"].item() / pictures,
        "codebook_usage": usage(counts).item(),
        "codebook_perplexity": perplexity(counts).item(),
    }
    if "right" in totals:
        figures["reconstruction_accuracy"] = totals["right"].item() / pictures
    return figures


class TokenizerEvaluationConfig(Config):
    """What to evaluate, on which pictures, with which feature networks."""

    model: str
    """Stage-1 run folder, or a model folder."""
    out: str
    """JSON file for the figures; its folder is made where missing."""
    data: ReferenceSetConfig
    """Pictures; by default those of the run that the model comes from."""
    split: EvaluatedSplit = "heldout"
    """Which pictures: heldout, train, or all of them (for a data set that is a test set as a whole)."""
    limit: int = Field(0, ge=0)
    """Number of pictures, the first ones; 0 for all."""
    lpips: tuple[PerceptualConfig, ...] = Field(
        (PerceptualConfig(backbone="alex"), PerceptualConfig(backbone="vgg")), strict=False
    )
    """LPIPS networks, [] for none: a tokenizer that was trained on one is to be judged by another. Each may have its
    file: [{backbone: alex, weights: alexnet.pth}]."""
    inception_weights: str = "pretrained"
    """`pretrained` (torch-fidelity's, from torch.hub's cache, downloaded on first use), a path to that file, or
    `random` (untrained features: for tests and dry runs)."""
    device: str | None = None
    """Where the networks run: cpu, cuda, cuda:1, ...; null for cuda if there is one, else cpu."""

    @model_validator(mode="after")
    def _check_networks_differ(self) -> "TokenizerEvaluationConfig":
        backbones = [network.backbone for network in self.lpips]
        if len(set(backbones)) < len(backbones):
            raise ValueError(
                f"lpips names a backbone twice: {', '.join(backbones)}; each gives one figure, leave one out"
            )
        return self


@dataclass(frozen=True)
class TokenizerReport:
    """All figures of a tokenizer, and what their protocols have in common."""

    model: dict[str, Any]
    shared: dict[str, Any]
    figures: list[Figure]

    def as_json(self) -> dict[str, Any]:
        """What metrics.json holds: every figure with its whole protocol, so that it can be quoted alone."""
        names = ("path", "weights_sha256", "image_size", "vocab_size", "codes_per_picture")
        shared = self.shared | {"model": {name: self.model[name] for name in names}}
        return {"model": self.model, "figures": {figure.name: figure.as_json(shared) for figure in self.figures}}

    def text(self) -> str:
        """A table for the console."""
        reference, model = self.shared["reference"], self.model
        limited = f", the first {reference['limit']}" if reference["limit"] else ""
        head = [
            f"{model['path']}: {model['codes_per_picture']} of {model['vocab_size']} codes a picture of "
            f"{model['image_size']}x{model['image_size']}, weights sha256 {model['weights_sha256'][:16]}",
            f"{reference['pictures']} pictures, split {reference['split']}{limited}, of {reference['source']}",
            f"pixels sha256 {reference['pixels_sha256'][:16]}; crop {self.shared['crop']}; {self.shared['resize']}",
            f"{self.shared['rounding']}; {self.shared['dtype']} on {self.shared['device']}",
        ]
        return "\n".join([*head, "", table(self.figures)])


def load_evaluation(overrides: Sequence[str]) -> TokenizerEvaluationConfig:
    """Settings from command line words. What is not given of `data` is that of the run that the model comes from.

    The picture size follows the tokenizer. Raises ConfigError or ModelFolderError, one line.
    """
    model = _option(overrides, "model")
    defaults: list[str] = []
    if model is not None:
        folder, run_config = find_model(model)
        section = read_yaml(run_config).get("data", {}) if run_config is not None else {}
        known = {name: section[name] for name in ReferenceSetConfig.model_fields if name in section}
        defaults = [f"--data.{name}={json.dumps(value)}" for name, value in known.items()]
        defaults.append(f"--data.transform.image_size={ImageTokenizer.from_pretrained(folder).image_size}")
    return load_config(TokenizerEvaluationConfig, None, [*defaults, *overrides])


def find_model(folder: str | Path) -> tuple[Path, Path | None]:
    """The model folder (`folder` itself, or its `model/`), and config.yaml of the run that it belongs to, if any."""
    folder = find_model_folder(folder)
    run_config = folder.resolve().parent / "config.yaml"
    return folder, run_config if folder.resolve().name == "model" and run_config.is_file() else None


@torch.no_grad()
def measure_tokenizer(config: TokenizerEvaluationConfig, progress: bool = False) -> TokenizerReport:
    """All figures in one pass over the pictures. Where weights of a feature network are missing, its figures say so.

    Raises ConfigError, DataError or ModelFolderError, one line.
    """
    folder = find_model_folder(config.model)
    _make_room(config.out)
    device = _device(config.device)
    tokenizer = ImageTokenizer.from_pretrained(folder).to(device)
    if config.data.transform.image_size != tokenizer.image_size:
        raise ConfigError(
            f"data.transform.image_size is {config.data.transform.image_size}, the tokenizer in {config.model} reads "
            f"{tokenizer.image_size}; leave it out or set it to that"
        )
    reference = ReferenceSet(config.data, config.split, config.limit)
    rate = Rate(tokenizer, device, config.data.batch_size)
    meters = _meters(config, tokenizer, device)
    codes_per_picture = 0
    with tqdm(total=reference.expected, unit="image", desc="evaluating", disable=not progress) as bar:
        for images in reference.batches():
            codes, reconstructions = rate.reconstruct(images.to(device))
            if not reconstructions.isfinite().all():
                raise ModelFolderError(
                    f"{folder} decodes to pixels that are no finite numbers: its weights are damaged"
                )
            batch = _rounded(images.to(device), reconstructions, codes)
            for meter in meters:
                meter.add(batch)
            codes_per_picture = codes.shape[1]
            bar.update(len(images))
    figures = [figure for meter in meters for figure in meter.figures()]
    model = {
        "path": str(folder),
        "weights_sha256": file_sha256(folder / WEIGHTS_FILE),
        "config": json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")),
        "image_size": tokenizer.image_size,
        "vocab_size": tokenizer.vocab_size,
        "codes_per_picture": codes_per_picture,
    }
    shared = reference.protocol() | {
        "rounding": "originals and reconstructions clamped and rounded to uint8 before they are compared",
        "dtype": _arithmetic(device),
        "device": _device_name(device),
        "torch": torch.__version__,
    }
    return TokenizerReport(model, shared, [*figures, *rate.figures()])


def write_report(report: TokenizerReport, out: str | Path) -> None:
    """Write metrics.json. Raises ConfigError where it cannot be written."""
    path = _make_room(out)
    try:
        path.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error.strerror or error}") from None


class Rate:
    """Encodes and decodes, and keeps the time. The first batch goes through once before, so that nothing is warming."""

    def __init__(self, tokenizer: ImageTokenizer, device: torch.device, batch_size: int) -> None:
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size
        self._pictures = 0
        self._seconds = 0.0
        self._warm = False

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and reconstructions of pictures on the device."""
        if not self._warm:
            self._tokenizer.decode(self._tokenizer.encode(images))
            self._warm = True
        self._wait()
        start = time.perf_counter()
        codes = self._tokenizer.encode(images)
        reconstructions = self._tokenizer.decode(codes)
        self._wait()
        self._seconds += time.perf_counter() - start
        self._pictures += len(images)
        return codes, reconstructions

    def figures(self) -> Iterator[Figure]:
        method = f"encode + decode, batches of {self._batch_size} on the device already, after one to warm up"
        details = {"batch_size": self._batch_size, "seconds": self._seconds, "evaluator": "vqgan.evaluation.Rate"}
        yield Figure("images_per_second", self._pictures / self._seconds, "images/s", method, details)

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


class PerceptualMeter:
    """Mean LPIPS distance. Raises ConfigError where the network's weights cannot be had."""

    def __init__(self, config: PerceptualConfig, device: torch.device) -> None:
        self._config = config
        self._loss = PerceptualLoss(config).to(device)
        self._sum = 0.0
        self._pictures = 0

    def add(self, batch: Reconstructed) -> None:
        """A batch's mean counts as often as it has pictures."""
        self._sum += self._loss(batch.reconstructions, batch.originals).item() * len(batch.codes)
        self._pictures += len(batch.codes)

    def figures(self) -> Iterator[Figure]:
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
        value = self._sum / self._pictures
        yield Figure(lpips_name(self._config), value, "", lpips_method(self._config), details, warning=warning)


def lpips_name(config: PerceptualConfig) -> str:
    """The figure's name: LPIPS values of two backbones do not compare."""
    return f"lpips_{config.backbone}"


def lpips_method(config: PerceptualConfig) -> str:
    """The figure's method."""
    return f"mean LPIPS distance ({config.backbone}), pictures in [-1, 1], no resize"


def _meters(config: TokenizerEvaluationConfig, tokenizer: ImageTokenizer, device: torch.device) -> list[Meter]:
    meters: list[Meter] = [FidelityMeter()]
    for network in config.lpips:
        name, method = lpips_name(network), lpips_method(network)
        if tokenizer.image_size < LPIPS_SMALLEST_PICTURE:
            missing = f"needs pictures of {LPIPS_SMALLEST_PICTURE} pixels at least, the tokenizer's have "
            meters.append(AbsentMeter([name], method, f"{missing}{tokenizer.image_size}"))
            continue
        try:
            with _impatient():
                meters.append(PerceptualMeter(network, device))
        except ConfigError as error:
            # The message speaks of the training section; here the weights stand in the list of networks.
            meters.append(AbsentMeter([name], method, str(error).replace("perceptual.", "lpips.")))
    try:
        with _impatient():
            meters.append(InceptionMeter(InceptionV3(config.inception_weights, device)))
    except ConfigError as error:
        meters.append(AbsentMeter(INCEPTION_FIGURES, "torch-fidelity's InceptionV3", str(error)))
    meters.append(CodebookMeter(tokenizer.vocab_size))
    return meters


def _rounded(images: Tensor, reconstructions: Tensor, codes: Tensor) -> Reconstructed:
    originals, made = to_uint8(images), to_uint8(reconstructions)
    return Reconstructed(to_float(originals), to_float(made), originals, made, codes)


@contextmanager
def _impatient() -> Iterator[None]:
    """Downloads give up on a server that does not answer; torch.hub would wait for as long as the system does."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _make_room(out: str | Path) -> Path:
    """The folder for a file. Called before the work too: an hour's figures shall not be lost to a wrong path."""
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error.strerror or error}") from None
    if path.is_dir():
        raise ConfigError(f"out: {str(out)!r} is a folder; give the name of a file in it, such as metrics.json")
    return path


def _option(words: Sequence[str], name: str) -> str | None:
    """The last value of an option among command line words, whatever else they hold."""
    value = None
    for position, word in enumerate(words):
        if word == f"--{name}" and position + 1 < len(words):
            value = words[position + 1]
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: {name} cannot be used here: {reason[:200]}; cpu always can") from None
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _arithmetic(device: torch.device) -> str:
    """Recent GPUs round what they convolve to TF32 unless told otherwise, which changes some codes."""
    rounded = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32, convolutions in TF32" if rounded else "float32"
