"""LoRA (arXiv 2106.09685) through `peft`: small matrices learn beside frozen linear layers, and are added at the end.

A network with adapters is only trained. Whatever is sampled, evaluated or shipped has them merged (`merged_copy`): its
keys, its speed and its packed weights are those of the network without LoRA.
"""

import copy
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config, ConfigError
from vqgan.hub.model_folder import (
    ModelFolderError,
    find_model_folder,
    read_model_config,
    read_weights,
    save_model_folder,
)

NetworkT = TypeVar("NetworkT", bound=nn.Module)

LORA_FOLDER = "lora"
"""In a model folder: where the adapters lie that are merged into its weights."""
_KIND = "lora"
_TENSOR = re.compile(r"\.lora_([AB])\.default\.weight$")


class LoRAConfig(Config, fixed=("rank", "alpha", "targets")):
    """Adapters on the linear layers of the blocks."""

    rank: int = Field(8, gt=0)
    """Rank r of each pair of matrices: r * (inputs + outputs) weights a layer."""
    alpha: float = Field(16.0, gt=0)
    """The product of both is scaled by alpha / rank."""
    targets: str = r".*(blocks|decoder)\.\d+\..*"
    """Regular expression over the names of the linear layers that get one; the default: all of every block."""


def add_lora(network: nn.Module, config: LoRAConfig) -> list[str]:
    """Freezes `network` and puts adapters on its linear layers; returns their names. The network computes what it did.

    Raises ConfigError without the package peft, or where no layer has such a name.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in layers if re.fullmatch(config.targets, name)]
    if not chosen:
        raise ConfigError(
            f"lora.targets {config.targets!r} matches none of the {len(layers)} linear layers, such as {layers[-1]!r}"
        )
    peft = _peft()
    network.requires_grad_(False)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=chosen)
    peft.inject_adapter_in_model(settings, network)
    return chosen


def merged_copy(network: NetworkT) -> NetworkT:
    """A copy with the adapters added to their layers, which are plain linear layers again."""
    peft = _peft()
    merged = copy.deepcopy(network)
    for name, module in list(merged.named_modules()):
        if isinstance(module, peft.tuners.lora.Linear):
            module.merge(safe_merge=True)
            merged.set_submodule(name, module.get_base_layer())
    return merged.requires_grad_(False)


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, by layer and `A` or `B`."""
    return {
        _TENSOR.sub(lambda found: f".{found[1]}", name): value
        for name, value in network.state_dict().items()
        if _TENSOR.search(name)
    }


def save_lora(folder: Path, network: nn.Module, config: LoRAConfig) -> None:
    """Writes config.json, model.safetensors and their checksums: the adapters alone."""
    save_model_folder(folder, {"kind": _KIND, "lora": config.model_dump(mode="json")}, lora_state(network))


def merge_lora(network: NetworkT, folder: str | Path) -> NetworkT:
    """A copy of `network` with the adapters in `folder` (`save_lora`, or a run that trained some) added to its layers.

    Raises ModelFolderError where there are none, or where they belong to another network.
    """
    folder = find_model_folder(folder)
    folder = folder / LORA_FOLDER if (folder / LORA_FOLDER).is_dir() else folder
    values = read_model_config(folder)
    if values.get("kind") != _KIND or not isinstance(values.get("lora"), dict):
        raise ModelFolderError(f"{folder} holds no LoRA adapters; give the lora folder of a run that trained some")
    scale = float(values["lora"]["alpha"]) / int(values["lora"]["rank"])
    state = read_weights(folder)
    merged = copy.deepcopy(network)
    for name in sorted({name.rpartition(".")[0] for name in state}):
        down, up = state[f"{name}.A"], state[f"{name}.B"]
        try:
            layer = merged.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, nn.Linear) or layer.weight.shape != (up.shape[0], down.shape[1]):
            raise ModelFolderError(
                f"{folder} has an adapter for {name!r}, which this network lacks or has in another size"
            )
        layer.weight.data += scale * (up.float() @ down.float()).to(layer.weight)
    return merged


def _peft() -> Any:
    try:
        import peft
        import peft.tuners.lora
    except ImportError:
        raise ConfigError('LoRA needs the package peft: pip install "parti-toolkit[lora]"') from None
    return peft
