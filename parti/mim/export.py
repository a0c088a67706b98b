"""A trained network as a folder that timm or transformers opens by itself, and a transformers folder read back.

`timm.create_model("local-dir:FOLDER")` gives the encoder; `AutoModel.from_pretrained(FOLDER)` the encoder too, and the
class that config.json names, where there is one, the whole network. Inputs are images in ImageNet's units, as both
projects' preprocessors make them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from parti.mim.backbones import SwinConfig, ViTConfig
from parti.mim.beit import BEiT
from parti.mim.mae import MAE
from parti.mim.mpp import MPP
from parti.mim.network import MaskedImageNetwork
from parti.mim.simmim import SimMIM
from parti.mim.targets import IMAGENET_MEAN, IMAGENET_STD
from parti.mim.transformers_names import Names, beit_names, mae_names, swin_names, vit_names
from vqgan.errors import UserError
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE

_LAYER_NORM_EPSILON = 1e-6
"""timm's ViT and the published files; transformers' own default is another."""
_SWIN_LAYER_NORM_EPSILON = 1e-5


class ExportError(UserError, ValueError):
    """A network that the other project has no class for, or a folder that is not as its config says."""


def export_timm(network: MaskedImageNetwork, folder: str | Path) -> None:
    """Write the encoder: `timm.create_model("local-dir:FOLDER", pretrained=True)` gives equal features."""
    settings = network.encoder_config
    shape = {"img_size": settings.image_size, "patch_size": settings.patch_size}
    if isinstance(settings, SwinConfig):
        architecture = "swin_base_patch4_window7_224"
        sizes: dict[str, Any] = {
            "embed_dim": settings.width,
            "depths": settings.depths,
            "num_heads": settings.heads,
            "window_size": settings.window_size,
        }
    else:
        architecture = "vit_base_patch16_224"
        sizes = {
            "embed_dim": settings.width,
            "depth": settings.depth,
            "num_heads": settings.heads,
            "mlp_ratio": settings.mlp_ratio,
        }
        if hasattr(network.encoder, "rel_pos_bias"):
            architecture = "beit_base_patch16_224"
            scale = float(network.encoder.blocks[0].init_values)
            sizes |= {"init_values": scale, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
            sizes |= {"use_abs_pos_emb": False}
        else:
            sizes |= {"fc_norm": False}
    side = settings.image_size
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": network.encoder.num_features,
        "global_pool": "",
        "model_args": {**shape, **sizes, "global_pool": ""},
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    _write(Path(folder), config, dict(network.encoder.state_dict()), {"format": "pt"})


def export_transformers(network: MaskedImageNetwork, folder: str | Path) -> None:
    """Write what transformers' `from_pretrained` reads. Raises ExportError for a network that it has no class for."""
    names, config = _counterpart(network)
    _write(Path(folder), config, names.to_theirs(network.state_dict()), {"format": "pt"})
    side = network.image_size
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def load_transformers_weights(network: MaskedImageNetwork, folder: str | Path) -> None:
    """Fill `network` from a folder of transformers with the same sizes. Raises ExportError where it does not fit."""
    names, _ = _counterpart(network)
    theirs = load_file(Path(folder) / WEIGHTS_FILE)
    try:
        network.load_state_dict(names.to_ours(_published(theirs)))
    except KeyError as error:
        raise ExportError(f"{folder} has no weight {error}: it holds another model") from None
    except RuntimeError as error:
        raise ExportError(f"{folder}: {' '.join(str(error).split())[:300]}; give model the same sizes") from None


def _published(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5 writes a decoder's layers under another name than the published files have."""
    return {name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): theirs[name] for name in theirs}


def _counterpart(network: MaskedImageNetwork) -> tuple[Names, dict[str, Any]]:
    make = COUNTERPARTS.get(type(network))
    if make is None:
        raise ExportError(
            f"transformers has no class for a {type(network).__name__}; export its encoder with --format timm"
        )
    return make(network)


def _mae(network: MAE) -> tuple[Names, dict[str, Any]]:
    config = network.config
    decoder = {
        "decoder_hidden_size": config.decoder.width,
        "decoder_num_hidden_layers": config.decoder.depth,
        "decoder_num_attention_heads": config.decoder.heads,
        "decoder_intermediate_size": 4 * config.decoder.width,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.normalize_targets,
    }
    values = {"architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", **_vit_sizes(config.encoder)}
    return mae_names(config.encoder.depth, config.decoder.depth), values | decoder


def _mpp(network: MPP) -> tuple[Names, dict[str, Any]]:
    """The encoder alone: transformers has no head of mean colors."""
    settings = network.config.encoder
    values = {"architectures": ["ViTModel"], "model_type": "vit", **_vit_sizes(settings)}
    return vit_names(settings.depth), values


def _beit(network: BEiT) -> tuple[Names, dict[str, Any]]:
    settings = network.config.encoder
    names = beit_names(settings.depth, "beit.")
    ends = [("encoder.norm", "layernorm"), ("head", "lm_head")]
    same = [(f"{own}.{kind}", f"{name}.{kind}") for own, name in ends for kind in ("weight", "bias")]
    values = {"architectures": ["BeitForMaskedImageModeling"], "vocab_size": network.head.out_features}
    return Names([*names.same, *same], names.packed), _beit_sizes(settings, network.config.layer_scale) | values


def _simmim(network: SimMIM) -> tuple[Names, dict[str, Any]]:
    """With a Swin Transformer the whole network; transformers' ViT of SimMIM is another, so of ours the encoder."""
    settings = network.config.encoder
    if isinstance(settings, ViTConfig):
        names = beit_names(settings.depth)
        same = [(f"encoder.norm.{kind}", f"layernorm.{kind}") for kind in ("weight", "bias")]
        values = {"architectures": ["BeitModel"], "use_mean_pooling": False}
        scale = float(network.encoder.blocks[0].init_values)
        return Names([*names.same, *same], names.packed), _beit_sizes(settings, scale) | values
    names = swin_names(settings)
    same = [(f"head.{kind}", f"decoder.0.{kind}") for kind in ("weight", "bias")]
    values = {
        "architectures": ["SwinForMaskedImageModeling"],
        "model_type": "swin",
        "image_size": settings.image_size,
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depths": settings.depths,
        "num_heads": settings.heads,
        "window_size": settings.window_size,
        "drop_path_rate": settings.drop_path,
        "encoder_stride": settings.stride,
        "layer_norm_eps": _SWIN_LAYER_NORM_EPSILON,
    }
    return Names([*names.same, *same], names.packed), values


def _vit_sizes(settings: ViTConfig) -> dict[str, Any]:
    return {
        "image_size": settings.image_size,
        "patch_size": settings.patch_size,
        "hidden_size": settings.width,
        "num_hidden_layers": settings.depth,
        "num_attention_heads": settings.heads,
        "intermediate_size": int(settings.width * settings.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": _LAYER_NORM_EPSILON,
    }


def _beit_sizes(settings: ViTConfig, layer_scale: float) -> dict[str, Any]:
    return {
        "model_type": "beit",
        **_vit_sizes(settings),
        "use_mask_token": True,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": True,
        "layer_scale_init_value": layer_scale,
        "drop_path_rate": settings.drop_path,
    }


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder} cannot be made: {error.strerror or error}; give another folder") from None
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata)


COUNTERPARTS: dict[type[MaskedImageNetwork], Callable[[Any], tuple[Names, dict[str, Any]]]] = {
    MAE: _mae,
    MPP: _mpp,
    BEiT: _beit,
    SimMIM: _simmim,
}
"""Which class of transformers has these weights."""
