"""Fréchet Inception distance (Heusel et al., arXiv 1706.08500) and inception score (arXiv 1606.03498).

Network, its resize to 299 pixels, statistics, matrix root and score are torch-fidelity's, untouched: rFID of tokenizers
is published with it (taming-transformers), and no two evaluators agree. The one departure is that features are taken to
float64 before their mean, which torch-fidelity adds up in float32.

Nothing is imported, downloaded or loaded before an `InceptionMeter` is built.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vqgan.config.schema import ConfigError
from vqgan.metrics.protocol import Metric, Reconstructions, package
from vqgan.system.checksums import file_sha256

SPLITS = 10
"""Parts of the set whose inception scores are averaged."""
SHUFFLE_SEED = 2020
"""Order in which images are dealt into the splits: torch-fidelity's."""
USUAL_IMAGES = 50_000
"""Images behind published metrics of tokenizers."""
USUAL_GENERATED_IMAGES = 30_000
"""Images behind published metrics of text-to-image models: as many captions of COCO."""
INCEPTION_METRICS = ("rfid", "inception_score", "inception_score_std")
GENERATED_METRICS = ("fid", "inception_score", "inception_score_std")
RELEASED_SHA256 = "6726825d"
"""First digits of the released weights' SHA-256; the file's name ends in them."""


@runtime_checkable
class FeatureNet(Protocol):
    """What the metrics stand on: images to features and logits, and what it is."""

    source: Mapping[str, str]
    """Evaluator and weights, for the protocol."""
    warning: str
    """Why its metrics compare with no published one; empty where they may."""

    def __call__(self, levels: UInt8[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
        """Returns features, and logits without their bias."""
        ...


class InceptionV3:
    """torch-fidelity's network with `weights`: `pretrained`, `random` or a path.

    Raises ConfigError that says what to fetch and where to put it.
    """

    def __init__(self, weights: str, device: torch.device) -> None:
        source = {"evaluator": package("torch-fidelity"), "network": "InceptionV3 (TF 2015-12-05)"}
        if weights == "random":
            network = _untrained()
            source |= {"weights": "random"}
            self.warning = "untrained network: compares with nothing"
        else:
            path = _weights_file(weights)
            network = _trained(path)
            source |= {"weights": path.name, "weights_sha256": file_sha256(path)}
            released = source["weights_sha256"].startswith(RELEASED_SHA256)
            self.warning = "" if released else "not the released weights: compares with nothing published"
        self.source: Mapping[str, str] = source
        self._network = network.to(device)

    @torch.no_grad()
    def __call__(self, levels: UInt8[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
        features, logits = self._network(levels)
        return features, logits


class InceptionMeter:
    """rFID of the reconstructions against their originals, and the reconstructions' inception score."""

    def __init__(self, network: FeatureNet) -> None:
        self._network = network
        self._originals: list[Tensor] = []
        self._reconstructions: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, batch: Reconstructions) -> None:
        """Keep the features of both, and the reconstructions' logits."""
        self._originals.append(self._network(batch.original_levels)[0].cpu())
        features, logits = self._network(batch.reconstruction_levels)
        self._reconstructions.append(features.cpu())
        self._logits.append(logits.cpu())

    def metrics(self) -> Iterator[Metric]:
        method = "Fréchet distance between Inception features of reconstructions and of their originals"
        sets = torch.cat(self._reconstructions), torch.cat(self._originals)
        yield _distance("rfid", method, self._network, sets, USUAL_IMAGES)
        yield from _scores("the reconstructions", self._network, torch.cat(self._logits), USUAL_IMAGES)


class GeneratedInceptionMeter:
    """FID of generated images against real ones, and the inception score of the generated ones. Set sizes may
    differ."""

    def __init__(self, network: FeatureNet) -> None:
        self._network = network
        self._real: list[Tensor] = []
        self._generated: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add_real(self, levels: UInt8[Tensor, "B 3 H W"]) -> None:
        """Keep the features of real images."""
        self._real.append(self._network(levels)[0].cpu())

    def add_generated(self, levels: UInt8[Tensor, "B 3 H W"]) -> None:
        """Keep the features and logits of generated images."""
        features, logits = self._network(levels)
        self._generated.append(features.cpu())
        self._logits.append(logits.cpu())

    def metrics(self) -> Iterator[Metric]:
        """Yields both metrics of all images so far."""
        method = "Fréchet distance between Inception features of generated images and of real ones"
        sets = torch.cat(self._generated), torch.cat(self._real)
        yield _distance("fid", method, self._network, sets, USUAL_GENERATED_IMAGES)
        yield from _scores("the generated images", self._network, torch.cat(self._logits), USUAL_GENERATED_IMAGES)


def _distance(name: str, method: str, network: FeatureNet, sets: tuple[Tensor, Tensor], usual: int) -> Metric:
    """Returns the Fréchet distance of a made set, which comes first, to its reference; small sets get a warning."""
    (count, width), fewest = sets[0].shape, min(map(len, sets))
    details = {**network.source, "features": width, "statistics": "float64", "resize_inside": "to 299, as TF1"}
    if fewest < 2:
        return Metric(name, None, "", method, details, missing=f"needs 2 images at least, received {fewest}")
    warnings = [network.warning]
    if fewest < width:
        warnings.append(
            f"singular covariance: {fewest} images for {width} features; the distance is biased by their number "
            f"and compares only between sets of {fewest}"
        )
    elif count != usual:
        warnings.append(f"{count} images: published metrics have {usual}, and FID falls as sets grow")
    return Metric(name, frechet_distance(*sets), "", method, details, warning="; ".join(filter(None, warnings)))


def _scores(of: str, network: FeatureNet, logits: Tensor, usual: int) -> Iterator[Metric]:
    count = len(logits)
    mean = f"exp of the mean KL(p(y|x) || p(y)) of {of}, mean over {SPLITS} splits"
    details = {**network.source, "splits": SPLITS, "shuffle_seed": SHUFFLE_SEED, "logits": "without bias"}
    methods = {"inception_score": mean, "inception_score_std": f"standard deviation over the {SPLITS} splits"}
    if count < SPLITS:
        missing = f"needs {SPLITS} images at least, one a split, received {count}"
        for name, method in methods.items():
            yield Metric(name, None, "", method, details, missing=missing)
        return
    warnings = [network.warning]
    if count != usual:
        warnings.append(f"{count} images: published scores have {usual}, and the score rises with them")
    warning = "; ".join(filter(None, warnings))
    for (name, method), value in zip(methods.items(), inception_score(logits), strict=True):
        yield Metric(name, value, "", method, details, warning=warning)


def frechet_distance(features: Float[Tensor, "N F"], reference: Float[Tensor, "M F"]) -> float:
    """|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)) of two sets of features, in float64 (Heusel et al., equation 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(part.double().cpu()) for part in (features, reference)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def inception_score(logits: Float[Tensor, "N K"]) -> tuple[float, float]:
    """Returns the mean and standard deviation over `SPLITS` parts of exp E KL(p(y|x) || p(y)), in float64."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    score = isc_features_to_metric(logits.cpu(), splits=SPLITS, shuffle=True, rng_seed=SHUFFLE_SEED)
    return float(score[KEY_METRIC_ISC_MEAN]), float(score[KEY_METRIC_ISC_STD])


def _trained(path: Path) -> nn.Module:
    # torch-fidelity unpickles whatever the file holds; this refuses files that hold anything but tensors.
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"inception_weights: {path} is not a file of tensors: {reason}; fetch it again") from error
    try:
        return _build(state)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"inception_weights: {path} does not fit torch-fidelity's InceptionV3: {reason}; give its released file"
        ) from error


def _untrained() -> nn.Module:
    """Random weights that keep the scale of what flows through them; the same ones at every call."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        """Keeps the weights that its layers were made with: the package knows only files."""

        def load_state_dict(self, *_: object, **__: object) -> None:
            """Do nothing."""

    # Only the CPU generator is used here; a forked one leaves the global generators unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = Untrained("untrained", ["2048", "logits_unbiased"], feature_extractor_weights_path=_file_of({}))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _build(state: object) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=_file_of(state)
    )


def _file_of(state: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def _weights_file(weights: str) -> Path:
    """Returns the file given, or torch-fidelity's in torch.hub's cache, fetched if missing."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights != "pretrained":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"inception_weights: no file {weights!r}; fetch {URL_INCEPTION_V3} and give its path, or 'pretrained'"
            )
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=RELEASED_SHA256)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"inception_weights: the Inception weights are not at {path} and cannot be downloaded ({error}); fetch "
                f"{URL_INCEPTION_V3} on another machine and put it there, or set inception_weights to its path"
            ) from error
    return path
