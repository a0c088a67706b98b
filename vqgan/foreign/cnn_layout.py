"""What the published checkpoints of CNN VQGANs have in common: the network, whose sizes its tensors tell.

taming-transformers and LlamaGen call the same parts by different names; `CNNNames` translates, from our names to
theirs, so that one reading of sizes, one import and one export serve both.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import ValidationError
from torch import Tensor

from vqgan.foreign.loading import load_renamed
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.models.cnn_vqgan import CNNVQGAN, CNNVQGANConfig
from vqgan.quantizers import QuantizerConfig

GROUPS = 32
"""Groups of the normalization in every published checkpoint; no tensor tells them."""

_LEVEL = re.compile(r"(encoder|decoder)\.levels\.(\d+)\.(blocks|attentions|resample)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.middle\.(\d)\.(.+)")
_HEAD = re.compile(r"(encoder|decoder)\.head\.(\d)\.(.+)")
_LAYERS = {"shortcut": "nin_shortcut", "query": "q", "key": "k", "value": "v", "out": "proj_out"}
"""Layers inside a block; the others are called as ours."""


class CNNNames(NamedTuple):
    """One project's names."""

    project: str
    """Where such files come from, for errors."""
    encoder_levels: str
    """The list of encoder levels, from the full resolution down."""
    decoder_levels: str
    """The list of decoder levels."""
    decoder_from_full: bool
    """Whether the decoder's levels count from the full resolution down; ours are in the order of use, upwards."""
    blocks: str
    """A level's residual blocks."""
    attentions: str
    """A level's attention blocks."""
    middle: tuple[str, str, str]
    """The middle's blocks."""
    quantizer: Mapping[str, str]
    """The quantizer's tensors, from our names."""

    def theirs(self, name: str, levels: int) -> str:
        """Their name of our tensor `name`, in a network of so many levels."""
        if found := _LEVEL.fullmatch(name):
            side, level, part, index, rest = found.groups()
            is_encoder = side == "encoder"
            if not is_encoder and self.decoder_from_full:
                level = str(levels - 1 - int(level))
            prefix = f"{self.encoder_levels if is_encoder else self.decoder_levels}.{level}"
            if part == "resample":
                return f"{prefix}.{'downsample' if is_encoder else 'upsample'}.conv.{rest}"
            return f"{prefix}.{self.blocks if part == 'blocks' else self.attentions}.{index}.{_layer(rest)}"
        if found := _MIDDLE.fullmatch(name):
            side, index, rest = found.groups()
            return f"{side}.mid.{self.middle[int(index)]}.{_layer(rest)}"
        if found := _HEAD.fullmatch(name):
            side, index, rest = found.groups()
            return f"{side}.{'norm_out' if index == '0' else 'conv_out'}.{rest}"
        if name in self.quantizer:
            return self.quantizer[name]
        return name.replace("encoder.to_latent", "quant_conv").replace("decoder.from_code", "post_quant_conv")


def cnn_config(
    tensors: Mapping[str, Tensor], names: CNNNames, quantizer: QuantizerConfig, image_size: int, dropout: float = 0.0
) -> CNNVQGANConfig:
    """The network's sizes, from the shapes of the encoder's tensors.

    Raises ForeignCheckpointError where these are not an encoder's.
    """

    def theirs(name: str) -> str:
        return names.theirs(name, 0)  # the encoder's names do not depend on the number of levels

    def width(name: str) -> int:
        return shape_of(tensors, theirs(name), 4, names.project)[0]

    base = width("encoder.conv_in.weight")
    levels = _count(tensors, lambda level: theirs(f"encoder.levels.{level}.blocks.0.conv1.weight"))
    widths = [width(f"encoder.levels.{level}.blocks.0.conv1.weight") for level in range(levels)]
    attends = [theirs(f"encoder.levels.{level}.attentions.0.query.weight") in tensors for level in range(levels)]
    try:
        return CNNVQGANConfig(
            image_size=image_size,
            base_channels=base,
            # Widths that are no multiples do not pass: their tensors are then of another shape than the network's.
            channel_multipliers=tuple(width // base for width in widths),
            residual_blocks=_count(tensors, lambda block: theirs(f"encoder.levels.0.blocks.{block}.conv1.weight")),
            attention_resolutions=tuple(image_size // 2**level for level, found in enumerate(attends) if found),
            middle_attention=theirs("encoder.middle.1.query.weight") in tensors,
            latent_channels=width("encoder.head.2.weight"),
            groups=GROUPS,
            dropout=dropout,
            quantizer=quantizer,
        )
    except ValidationError as error:
        reasons = "; ".join(
            ": ".join([*map(str, detail["loc"][:1]), detail["msg"].removeprefix("Value error, ")])
            for detail in error.errors()
        )
        raise ForeignCheckpointError(
            f"the network of {levels} levels, {base} channels wide at the start, for {image_size} pixels is none of "
            f"{names.project}'s: {reasons}; pass all tensors of such a file, and the resolution of its training"
        ) from error


def build_cnn(config: CNNVQGANConfig, tensors: Mapping[str, Tensor], names: CNNNames) -> CNNVQGAN:
    """The autoencoder of these tensors. Raises ForeignCheckpointError where they do not fit the config."""
    autoencoder = CNNVQGAN(config)
    original_names = original_names_of(autoencoder, names)
    ours = {theirs: name for name, theirs in original_names.items()}
    load_renamed(autoencoder, {ours.get(name, name): tensor for name, tensor in tensors.items()}, original_names)
    return autoencoder


def original_names_of(autoencoder: CNNVQGAN, names: CNNNames) -> dict[str, str]:
    """Their name of each of the autoencoder's tensors."""
    levels = len(autoencoder.config.channel_multipliers)
    return {name: names.theirs(name, levels) for name in autoencoder.state_dict()}


def shape_of(tensors: Mapping[str, Tensor], name: str, dimensions: int, project: str) -> tuple[int, ...]:
    """The shape of the tensor `name`. Raises ForeignCheckpointError where it is missing or has other dimensions."""
    found = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
    if name not in tensors or tensors[name].ndim != dimensions or not tensors[name].numel():
        raise ForeignCheckpointError(
            f"a VQGAN of {project} has a tensor {name} of {dimensions} dimensions, it is {found} among the file's "
            f"{len(tensors)} ({', '.join([*tensors][:3])}, ...); pass the tensors of such a file, without the "
            "dictionary around them"
        )
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], name: Callable[[int], str]) -> int:
    """How many there are of `name(0)`, `name(1)`, ..."""
    return next(index for index in itertools.count() if name(index) not in tensors)


def _layer(rest: str) -> str:
    layer, _, leaf = rest.partition(".")
    return f"{_LAYERS.get(layer, layer)}.{leaf}"
