"""LPIPS v0.1 (Zhang et al., 1801.03924) as a training loss, from the `lpips` package's parts.

The value is that of `lpips.LPIPS`, with one difference: under autocast the features are computed in low precision,
but compared in fp32.

The linear layers ship in the package. The backbone's ImageNet weights are torchvision's file, from its cache, the
network, or a path. Nothing is imported, downloaded or loaded before a `PerceptualLoss` is built.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config, ConfigError

Backbone = Literal["vgg", "alex", "squeeze"]

_WEIGHTS_ENUMS: dict[Backbone, str] = {
    "vgg": "VGG16_Weights",
    "alex": "AlexNet_Weights",
    "squeeze": "SqueezeNet1_1_Weights",
}
"""torchvision's names of each backbone's ImageNet weights."""


class PerceptualConfig(Config, may_change=("backbone", "weights", "seed")):
    """LPIPS: which features are compared, and where their weights come from."""

    backbone: Backbone = "vgg"
    """Feature network. The paper uses VGG; alex and squeeze are some 10 times cheaper."""
    weights: str = "pretrained"
    """`pretrained` (torchvision's cache, downloaded on first use), a path to torchvision's state-dict file, or
    `random` (untrained features: for tests and dry runs)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the weights, if `random`."""


class PerceptualLoss(nn.Module):
    """LPIPS distance, a frozen network: no parameter wants a gradient, and `train()` leaves it in eval mode.

    Raises ConfigError if the backbone's weights cannot be found or do not fit.
    """

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        import lpips

        # Only the CPU generator is used here; a forked one leaves the global generators unchanged.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.default_generator.manual_seed(config.seed)
            # lpips asks torchvision for untrained networks by a deprecated argument.
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            network = lpips.LPIPS(net=config.backbone, version="0.1", pnet_rand=True, verbose=False)
        self.scaling: nn.Module = network.scaling_layer
        self.backbone: nn.Module = network.net
        self.linears: nn.ModuleList = network.lins
        if config.weights != "random":
            _load_backbone(self.backbone, weights_file(config), config.backbone)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":  # noqa: ARG002
        """Does nothing: the network stays in evaluation mode, because the linear layers have dropout."""
        return super().train(False)

    def forward(self, reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
        """Returns the mean LPIPS distance of two batches in [-1, 1] (H, W of at least 32); 0 for equal ones."""
        total = reconstruction.new_zeros((), dtype=torch.float32)
        features = zip(self._features(reconstruction), self._features(images), self.linears, strict=True)
        for reconstructed, original, linear in features:
            difference = (_normalize(reconstructed) - _normalize(original)).square()  # (B, C, h, w)
            with torch.autocast(difference.device.type, enabled=False):
                total = total + linear(difference).mean()
        return total

    def _features(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(self.scaling(images))


def _normalize(features: Tensor) -> Tensor:
    """Unit length over the channels, in fp32, with lpips' epsilon; the norm's gradient at a vector of zeros is 0."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def weights_file(config: PerceptualConfig) -> Path:
    """Returns the backbone's state-dict file: the path given, or torchvision's, fetched into torch.hub's cache if
    missing."""
    if config.weights != "pretrained":
        path = Path(config.weights).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"perceptual.weights: no file {config.weights!r}; give a torchvision state-dict file of "
                f"{config.backbone}, 'pretrained' or 'random'"
            )
        return path
    import torchvision

    url: str = getattr(torchvision.models, _WEIGHTS_ENUMS[config.backbone]).IMAGENET1K_V1.url
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The name ends in the first 8 digits of the file's SHA-256.
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"perceptual.weights: the ImageNet weights of {config.backbone} are not at {path} and cannot be "
                f"downloaded ({error}); fetch {url} on another machine and put it there, or set perceptual.weights "
                "to the path of that file, or to 'random' for untrained features"
            ) from error
    return path


def _load_backbone(backbone: nn.Module, path: Path, name: Backbone) -> None:
    """Copies torchvision's `features.<index>.*` into lpips' `slice<k>.<index>.*`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"perceptual.weights: {path} is not a file of tensors: {reason}; fetch it again") from error
    if not isinstance(state, Mapping):
        raise ConfigError(f"perceptual.weights: {path} holds a {type(state).__name__}, not a state dict")
    loaded: dict[str, Any] = {}
    for key, own in backbone.state_dict().items():
        source = "features." + key.partition(".")[2]
        theirs = state.get(source)
        if not isinstance(theirs, Tensor) or theirs.shape != own.shape:
            received = f"of shape {tuple(theirs.shape)}" if isinstance(theirs, Tensor) else "missing"
            raise ConfigError(
                f"perceptual.weights: {path} is not torchvision's {name}: {source} must have the shape "
                f"{tuple(own.shape)} and is {received}; give the file of perceptual.backbone={name}"
            )
        loaded[key] = theirs
    backbone.load_state_dict(loaded)
