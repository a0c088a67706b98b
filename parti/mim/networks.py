"""Every network of masked image modeling by its kind, and how one is opened from a folder."""

from pathlib import Path

from parti.mim.beit import BEiT
from parti.mim.mae import MAE
from parti.mim.mpp import MPP
from parti.mim.network import MaskedImageNetwork
from parti.mim.simmim import SimMIM
from vqgan.hub.model_folder import ModelFolder, ModelFolderError, open_model_folder

NETWORKS: dict[str, type[MaskedImageNetwork]] = {"mae": MAE, "simmim": SimMIM, "beit": BEiT, "mpp": MPP}
"""By the kind that config.json names."""


def load_network(folder: str | Path | ModelFolder) -> MaskedImageNetwork:
    """The network in a model folder, the run folder that has one in `model/`, or a Hub name, in evaluation mode.

    Raises ModelFolderError for a folder without one, ConfigError for a config.json that is not admitted.
    """
    found = open_model_folder(folder)
    if found.kind not in NETWORKS:
        kind = f", of kind {found.kind!r}," if found.kind is not None else ""
        raise ModelFolderError(
            f"{found}{kind} holds no network of masked image modeling ({', '.join(NETWORKS)}); give the folder of a "
            "run of configs/mim"
        )
    return NETWORKS[found.kind].from_pretrained(found)
