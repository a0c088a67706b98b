"""Checkpoints of the papers' own repositories, read as data into networks of ours: MAE, BEiT and SimMIM.

The authors' encoders have timm's names. What surrounds them is renamed here, and nothing of a pickle is run. Sizes are
those of a config of ours (`configs/mim/mae_base.yaml` for MAE's ViT-B/16): a file of other sizes is one clear error.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from parti.mim.beit import BEiT, BEiTConfig
from parti.mim.mae import MAE, MAEConfig
from parti.mim.network import MaskedImageNetwork
from parti.mim.simmim import SimMIM, SimMIMConfig
from vqgan.config.schema import ConfigError, read_yaml, validate
from vqgan.foreign.reading import ForeignCheckpointError, read_tensors
from vqgan.foreign.wrappers import section_of

_COMPUTED = ("relative_position_index", "attn_mask", "relative_coords_table")
"""Buffers that follow from the sizes."""


def import_published(
    kind: str, checkpoint: Path, config: Path, say: Callable[[str], None] = lambda _: None
) -> MaskedImageNetwork:
    """The network of a published file; `kind` is one of PUBLISHED, `config` a YAML of a run of that kind.

    A file of an encoder alone is read too: decoder or head are new then, and `say` hears of it. Raises
    ForeignCheckpointError for a file that does not fit, ConfigError for a config of another objective.
    """
    build, rename, rest = PUBLISHED[kind]
    values = read_yaml(config)
    if values.get("objective") != kind:
        raise ConfigError(f"{config} is of objective {values.get('objective')!r}; give a config of {kind}")
    content, _ = section_of(read_tensors(checkpoint), ("model",))
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    renamed = {rename(name): value for name, value in tensors.items() if not name.endswith(_COMPUTED)}
    network = build(values.get("model", {}), renamed, str(config))
    own = network.state_dict()
    lacking = [name for name in own if name not in renamed]
    if lacking and all(name.startswith(rest) for name in lacking):
        say(f"{checkpoint} holds the encoder alone: {lacking[0]} and {len(lacking) - 1} more tensors are new")
        renamed = {name: own[name] for name in lacking} | renamed
        lacking = []
    unknown = [name for name in renamed if name not in own]
    shaped = [name for name in renamed if name in own and renamed[name].shape != own[name].shape]
    for names, what in ((lacking, "lacks"), (unknown, "has beside them"), (shaped, "has in another shape")):
        if names:
            raise ForeignCheckpointError(
                f"{checkpoint} {what} {names[0]} and {len(names) - 1} more tensors of a {kind} of the sizes in "
                f"{config}; give the config of its size"
            )
    network.load_state_dict(renamed)
    return network.eval()


def _build_mae(model: dict[str, Any], _: Mapping[str, Tensor], source: str) -> MAE:
    return MAE(validate(MAEConfig, model, source))


def _build_simmim(model: dict[str, Any], _: Mapping[str, Tensor], source: str) -> SimMIM:
    return SimMIM(validate(SimMIMConfig, model, source))


def _build_beit(model: dict[str, Any], tensors: Mapping[str, Tensor], source: str) -> BEiT:
    head = tensors.get("head.bias")
    return BEiT(validate(BEiTConfig, model, source), 8192 if head is None else len(head))


def _mae(name: str) -> str:
    return name if name == "mask_token" or name.startswith("decoder_") else f"encoder.{name}"


def _beit(name: str) -> str:
    if name.startswith("lm_head."):
        return name.replace("lm_head.", "head.")
    return name if name == "mask_token" else f"encoder.{name}"


def _simmim(name: str) -> str:
    """A stage's last layer merges patches there, and is the first of the next stage in timm."""
    if name == "encoder.mask_token":
        return "mask_token"
    if name.startswith("decoder.0."):
        return name.replace("decoder.0.", "head.")
    parts = name.split(".")
    if parts[:2] == ["encoder", "layers"] and parts[3] == "downsample":
        parts[2] = str(int(parts[2]) + 1)
    return ".".join(parts)


PUBLISHED: dict[
    str,
    tuple[
        Callable[[dict[str, Any], Mapping[str, Tensor], str], MaskedImageNetwork],
        Callable[[str], str],
        tuple[str, ...],
    ],
] = {
    "mae": (_build_mae, _mae, ("decoder_", "mask_token")),
    "beit": (_build_beit, _beit, ("head.", "mask_token")),
    "simmim": (_build_simmim, _simmim, ("head.", "mask_token")),
}
"""By objective: what builds the network, our name of one of theirs, and what an encoder alone may lack."""
