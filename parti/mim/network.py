"""What the networks of all papers have in common: an encoder of timm's, a way to draw masks, and a model folder.

Legend: B batch, N patches, P numbers of a patch, M masked patches of the batch, K classes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from parti.mim.backbones import SwinConfig, ViTConfig
from parti.mim.targets import to_imagenet
from vqgan.config.schema import Config
from vqgan.hub.pretrained import PretrainedMixin

Masks = tuple[Tensor, ...]
"""What a network's `forward` takes beside the images; the first, bool (B, N), says which patches are predicted."""


class MaskedImageNetwork(PretrainedMixin, nn.Module):
    """A network that is trained by predicting what is masked. Its `encoder` is what is used afterwards."""

    folder_holds = ("network of masked image modeling", "give the folder of a run of configs/mim")

    def __init__(self, config: Config, encoder_config: ViTConfig | SwinConfig, encoder: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder_config = encoder_config
        self.encoder = encoder

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.encoder_config.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.encoder_config.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.encoder_config.grid

    def untrained(self) -> "MaskedImageNetwork":
        """The same network with new random weights."""
        return type(self)(self.config)  # type: ignore[call-arg]

    @abstractmethod
    def draw_mask(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """What is masked of one image, each array (N,)."""

    def draw_masks(self, generators: Sequence[np.random.Generator], device: torch.device) -> Masks:
        """The masks of a batch, one image's by each generator."""
        rows = [self.draw_mask(generator) for generator in generators]
        return tuple(torch.from_numpy(np.stack(column)).to(device) for column in zip(*rows, strict=True))

    def repeated_layers(self) -> Sequence[nn.Module]:
        """The blocks of the network, the encoder's first."""
        return self.encoder_blocks()

    def encoder_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the encoder, in their order."""
        stages = getattr(self.encoder, "layers", None)
        return [*self.encoder.blocks] if stages is None else [block for stage in stages for block in stage.blocks]

    def layer_states(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B n d"]]:
        """Of whole images in [-1, 1]: the states of the patches after each block (Swin: each stage), the last normed.

        A batch of features for probes: no mask, no class token.
        """
        pixels = to_imagenet(images)
        if isinstance(self.encoder_config, SwinConfig):
            maps = self.encoder.forward_intermediates(pixels, norm=False, intermediates_only=True)
            states = [one.flatten(2).transpose(1, 2) for one in maps]
        else:
            states = self.encoder.forward_intermediates(pixels, norm=False, output_fmt="NLC", intermediates_only=True)
        return [*states[:-1], self.encoder.norm(states[-1])]

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        return self.config.model_dump(mode="json"), self


class PixelNetwork(MaskedImageNetwork):
    """One that predicts pixels: `forward(images, mask)` gives (B, N, P), in the units of `targets`."""

    @abstractmethod
    def targets(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N P"]:
        """What the patches of images in [-1, 1] are predicted as."""

    @abstractmethod
    def shown(self, predictions: Float[Tensor, "B N P"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Predictions as images in [-1, 1]."""


class ClassNetwork(MaskedImageNetwork):
    """One that predicts classes: `forward(images, chosen, ...)` gives the logits (M, K) of the chosen patches."""
