"""The ViT-VQGANs of thuanz123/enhancing-transformers.

The YAML beside a checkpoint holds `model.params` with `image_size`, `patch_size`, `encoder`, `decoder` and `quantizer`;
all of it but two switches (`use_norm`, `use_residual`) can be read from the tensors' shapes, which win: a YAML that
disagrees is an error. Its Gumbel variant has the same tensors, and the same codes where chance is off.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from vqgan.foreign.loading import load_renamed
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.models.autoencoder import Autoencoder
from vqgan.models.enhancing_vit import EnhancingStackConfig, EnhancingViTVQGAN, EnhancingViTVQGANConfig
from vqgan.quantizers import NearestConfig

_HEAD_WIDTH = 64
"""Of every published model; no tensor tells it."""
_TRAINING_ONLY = "loss."
"""What the discriminator and the perceptual network are under."""

_NOT_READ = ("quantizer.use_residual",)
"""What no tensor tells, and no model here has."""

_ENDS = {
    "encoder.patchify.": "encoder.to_patch_embedding.0.",
    "encoder.transformer.positions": "encoder.en_pos_embedding",
    "encoder.to_latent.": "pre_quant.",
    "quantizer.codebook": "quantizer.embedding.weight",
    "decoder.from_code.": "post_quant.",
    "decoder.transformer.positions": "decoder.de_pos_embedding",
    "decoder.unpatchify.": "decoder.to_pixel.1.",
}
"""Their names of our parts outside the blocks, by how ours begin."""
_LAYERS = {
    "attention_norm": "0.norm",
    "qkv": "0.fn.to_qkv",
    "out": "0.fn.to_out",
    "mlp_norm": "1.norm",
    "mlp.0": "1.fn.net.0",
    "mlp.2": "1.fn.net.2",
}
"""Their names of the layers of a block."""
_BLOCK = re.compile(r"(encoder|decoder)\.transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)")


def from_enhancing(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Autoencoder:
    """The autoencoder of a checkpoint's `state_dict`; `config` is the YAML beside it, where there is one.

    Raises ForeignCheckpointError where tensors are missing, unknown or of another shape, or disagree with the YAML.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(_TRAINING_ONLY)}
    params = _params(config)
    found = _config(tensors, normalized=bool(_section(params, "quantizer").get("use_norm", True)))
    _check_agreement(params, found, tensors)
    for name in ("encoder.en_pos_embedding", "decoder.de_pos_embedding"):
        _shape(tensors, name, 3)
        tensors[name] = tensors[name].flatten(0, 1)  # (1, N, D) to (N, D)
    model = EnhancingViTVQGAN(found)
    names = {name: _their_name(name) for name in model.state_dict()}
    ours = {theirs: name for name, theirs in names.items()}
    load_renamed(model, {ours.get(name, name): tensor for name, tensor in tensors.items()}, names)
    return model


def _their_name(name: str) -> str:
    if block := _BLOCK.fullmatch(name):
        side, index, layer, leaf = block.groups()
        return f"{side}.transformer.layers.{index}.{_LAYERS[layer]}.{leaf}"
    for ours, theirs in _ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _config(tensors: Mapping[str, Tensor], normalized: bool) -> EnhancingViTVQGANConfig:
    """All sizes from the shapes of tensors."""
    patch = _shape(tensors, "encoder.to_patch_embedding.0.weight", 4)[-1]
    places = _shape(tensors, "encoder.en_pos_embedding", 3)[1]
    if isqrt(places) ** 2 != places:
        raise ForeignCheckpointError(
            f"encoder.en_pos_embedding has {places} places, which is no square: the tokenizer was trained on images "
            "that are not square, and those here are; there is no remedy"
        )
    codebook_size, code_dim = _shape(tensors, "quantizer.embedding.weight", 2)
    return EnhancingViTVQGANConfig(
        image_size=isqrt(places) * patch,
        patch_size=patch,
        encoder=_stack(tensors, "encoder"),
        decoder=_stack(tensors, "decoder"),
        quantizer=NearestConfig(codebook_size=codebook_size, code_dim=code_dim, l2_normalize=normalized),
    )


def _stack(tensors: Mapping[str, Tensor], side: str) -> EnhancingStackConfig:
    qkv = f"{side}.transformer.layers.0.0.fn.to_qkv.weight"
    inner, width = _shape(tensors, qkv, 2)
    if inner % (3 * _HEAD_WIDTH) or width % 4:
        raise ForeignCheckpointError(
            f"{qkv} has shape {(inner, width)}: not three times heads of {_HEAD_WIDTH}, over a width that 4 divides; "
            "these are not the weights of an enhancing-transformers ViT-VQGAN"
        )
    blocks = {name.split(".")[3] for name in tensors if name.startswith(f"{side}.transformer.layers.")}
    return EnhancingStackConfig(
        depth=len(blocks),
        width=width,
        heads=inner // (3 * _HEAD_WIDTH),
        head_width=_HEAD_WIDTH,
        mlp_width=_shape(tensors, f"{side}.transformer.layers.0.1.fn.net.0.weight", 2)[0],
    )


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    found = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
    if name not in tensors or tensors[name].ndim != dimensions or not all(tensors[name].shape):
        raise ForeignCheckpointError(
            f"a ViT-VQGAN of enhancing-transformers has a tensor {name} of {dimensions} dimensions, it is {found} "
            f"among the file's {len(tensors)} ({', '.join([*tensors][:3])}, ...); pass such a file, or another format"
        )
    return tuple(tensors[name].shape)


def _params(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The YAML's `model.params`; nothing where there is no YAML."""
    params = _section(_section(config, "model"), "params") if config is not None else {}
    if config is not None and not {"encoder", "decoder", "quantizer"} <= params.keys():
        raise ForeignCheckpointError(
            "this is no config of an enhancing-transformers ViT-VQGAN: model.params has no encoder, decoder and "
            "quantizer; pass the YAML that belongs to this checkpoint"
        )
    return params


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name, {})
    return section if isinstance(section, Mapping) else {}


def _check_agreement(params: Mapping[str, Any], found: EnhancingViTVQGANConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise where the YAML says another network than the tensors are, or one with residual codes."""
    codebook_size, code_dim = tensors["quantizer.embedding.weight"].shape
    facts: dict[str, Any] = {
        "image_size": found.image_size,
        "patch_size": found.patch_size,
        "quantizer.embed_dim": code_dim,
        "quantizer.n_embed": codebook_size,
        "quantizer.use_residual": False,
    }
    for side, stack in (("encoder", found.encoder), ("decoder", found.decoder)):
        facts |= {
            f"{side}.dim": stack.width,
            f"{side}.depth": stack.depth,
            f"{side}.heads": stack.heads,
            f"{side}.mlp_dim": stack.mlp_width,
            f"{side}.dim_head": stack.head_width,
        }
    for name, fact in facts.items():
        section, _, leaf = name.rpartition(".")
        value = (_section(params, section) if section else params).get(leaf, fact)
        if value != fact:
            raise ForeignCheckpointError(
                f"the config says {name} {value}, the tensors are those of {name} {fact}; pass the YAML that belongs "
                "to this checkpoint" + (f": a model of {name} {value} is not read" if name in _NOT_READ else "")
            )
