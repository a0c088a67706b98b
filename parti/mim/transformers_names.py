"""What weights of our encoders are called in files of transformers: pairs of names, and which attention is split.

Files have the names that every version reads (`encoder.layer.N.attention.attention.query`); transformers 5 renames
modules in memory and reads these files as before. timm packs queries, keys and values into one matrix, and they split
it; BEiT's keys have no bias.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from parti.mim.backbones import SwinConfig


class Names(NamedTuple):
    """`same`: (our name, theirs). `packed`: (our prefix of an attention, theirs)."""

    same: list[tuple[str, str]]
    packed: list[tuple[str, str]]

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our weights under their names."""
        theirs = {name: ours[own] for own, name in self.same}
        for own, name in self.packed:
            for part, weight in zip(("query", "key", "value"), ours[f"{own}.qkv.weight"].chunk(3), strict=True):
                theirs[f"{name}.{part}.weight"] = weight
            theirs |= {f"{name}.{part}.bias": bias for part, bias in _biases(ours, own).items()}
        return theirs

    def to_ours(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their weights under our names. Raises KeyError for one that is missing."""
        ours = {own: theirs[name] for own, name in self.same}
        for own, name in self.packed:
            parts = ("query", "key", "value")
            ours[f"{own}.qkv.weight"] = torch.cat([theirs[f"{name}.{part}.weight"] for part in parts])
            if f"{name}.key.bias" in theirs:
                ours[f"{own}.qkv.bias"] = torch.cat([theirs[f"{name}.{part}.bias"] for part in parts])
            else:
                ours[f"{own}.q_bias"] = theirs[f"{name}.query.bias"]
                ours[f"{own}.v_bias"] = theirs[f"{name}.value.bias"]
        return ours


def vit_names(depth: int, theirs: str = "", ours: str = "encoder.") -> Names:
    """timm's VisionTransformer and their ViTModel, or the encoder of their ViTMAE."""
    same = [
        (f"{ours}cls_token", f"{theirs}embeddings.cls_token"),
        (f"{ours}pos_embed", f"{theirs}embeddings.position_embeddings"),
        *_both(f"{ours}patch_embed.proj", f"{theirs}embeddings.patch_embeddings.projection"),
        *_both(f"{ours}norm", f"{theirs}layernorm"),
    ]
    return _with_blocks(same, f"{ours}blocks", f"{theirs}encoder.layer", depth)


def mae_names(depth: int, decoder_depth: int) -> Names:
    """Our MAE and their ViTMAEForPreTraining."""
    encoder = vit_names(depth, "vit.")
    same = [
        *encoder.same,
        ("mask_token", "decoder.mask_token"),
        ("decoder_pos_embed", "decoder.decoder_pos_embed"),
        *(pair for part in ("embed", "norm", "pred") for pair in _both(f"decoder_{part}", f"decoder.decoder_{part}")),
    ]
    decoder = _with_blocks(same, "decoder_blocks", "decoder.decoder_layers", decoder_depth)
    return Names(decoder.same, encoder.packed + decoder.packed)


def beit_names(depth: int, theirs: str = "") -> Names:
    """timm's Beit with a shared table and their BeitModel, without the last norm, whose place differs."""
    table = "relative_position_bias_table"
    same = [
        ("encoder.cls_token", f"{theirs}embeddings.cls_token"),
        ("mask_token", f"{theirs}embeddings.mask_token"),
        (f"encoder.rel_pos_bias.{table}", f"{theirs}encoder.relative_position_bias.{table}"),
        *_both("encoder.patch_embed.proj", f"{theirs}embeddings.patch_embeddings.projection"),
    ]
    for number in range(depth):
        for scale in ("1", "2"):
            same.append((f"encoder.blocks.{number}.gamma_{scale}", f"{theirs}encoder.layer.{number}.lambda_{scale}"))
    return _with_blocks(same, "encoder.blocks", f"{theirs}encoder.layer", depth)


def swin_names(config: SwinConfig, theirs: str = "swin.") -> Names:
    """timm's SwinTransformer and their SwinModel: the layer that merges patches is the next stage's first here, and
    the last of the stage before there."""
    same = [
        ("mask_token", f"{theirs}embeddings.mask_token"),
        *_both("encoder.patch_embed.proj", f"{theirs}embeddings.patch_embeddings.projection"),
        *_both("encoder.patch_embed.norm", f"{theirs}embeddings.norm"),
        *_both("encoder.norm", f"{theirs}layernorm"),
    ]
    packed = []
    for stage, depth in enumerate(config.depths):
        own, name = f"encoder.layers.{stage}", f"{theirs}encoder.layers.{stage}"
        if stage:
            merged = f"{theirs}encoder.layers.{stage - 1}.downsample"
            same += [*_both(f"{own}.downsample.norm", f"{merged}.norm")]
            same.append((f"{own}.downsample.reduction.weight", f"{merged}.reduction.weight"))
        for number in range(depth):
            block, theirs_block = f"{own}.blocks.{number}", f"{name}.blocks.{number}"
            table = "relative_position_bias_table"
            same.append((f"{block}.attn.{table}", f"{theirs_block}.attention.self.{table}"))
            same += _block(block, theirs_block)
            packed.append((f"{block}.attn", f"{theirs_block}.attention.self"))
    return Names(same, packed)


def _with_blocks(same: list[tuple[str, str]], ours: str, theirs: str, depth: int) -> Names:
    blocks = [pair for number in range(depth) for pair in _block(f"{ours}.{number}", f"{theirs}.{number}")]
    packed = [(f"{ours}.{number}.attn", f"{theirs}.{number}.attention.attention") for number in range(depth)]
    return Names([*same, *blocks], packed)


def _block(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for own, name in (
        ("norm1", "layernorm_before"),
        ("attn.proj", "attention.output.dense"),
        ("norm2", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        yield from _both(f"{ours}.{own}", f"{theirs}.{name}")


def _both(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", f"{theirs}.{kind}"


def _biases(ours: Mapping[str, Tensor], own: str) -> dict[str, Tensor]:
    if f"{own}.q_bias" in ours:
        return {"query": ours[f"{own}.q_bias"], "value": ours[f"{own}.v_bias"]}
    return dict(zip(("query", "key", "value"), ours[f"{own}.qkv.bias"].chunk(3), strict=True))
