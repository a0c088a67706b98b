"""SimMIM (Xie et al., "SimMIM: a Simple Framework for Masked Image Modeling", arXiv 2111.09886).

Large squares of an image are masked, a learned token stands for each of their patches from the first layer on, and one
linear layer predicts their pixels. The encoder is a Swin Transformer, or a ViT as BEiT has it.

Legend: B batch, N patches, P numbers of a patch.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.mim.backbones import SwinConfig, ViTConfig, build_beit, build_swin, run_beit, truncated_normal
from parti.mim.masking import masked_units, unit_mask
from parti.mim.network import PixelNetwork
from parti.mim.targets import from_imagenet, patchify, to_imagenet, unpatchify
from vqgan.config.schema import Config, validate
from vqgan.hub.model_folder import ModelFolder, load_model

_LAYER_SCALE = 0.1
"""Of the ViT."""


class SimMIMConfig(Config, fixed=("kind",), may_change=("mask_size", "mask_ratio")):
    """The network and its task. The defaults are the paper's Swin-B."""

    kind: Literal["simmim"] = "simmim"
    """What a model folder holds."""
    encoder: SwinConfig | ViTConfig = Field(SwinConfig(), discriminator="kind")
    """The encoder."""
    mask_size: int = Field(32, gt=0)
    """Side of the squares that are masked as one, in pixels (table 1: 32 is best)."""
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    """Share of the squares that is masked, rounded up."""

    @model_validator(mode="after")
    def _check_units(self) -> "SimMIMConfig":
        image, patch = self.encoder.image_size, self.encoder.patch_size
        if image % self.mask_size or self.mask_size % patch:
            raise ValueError(
                f"mask_size {self.mask_size} must be a multiple of encoder.patch_size {patch} and divide "
                f"encoder.image_size {image}"
            )
        units = (image // self.mask_size) ** 2
        if masked_units(units, self.mask_ratio) >= units:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} of {units} squares masks all of them; lower mask_ratio or mask_size"
            )
        return self


class SimMIM(PixelNetwork):
    """An encoder with SimMIM's head."""

    kinds = ("simmim",)
    config: SimMIMConfig

    def __init__(self, config: SimMIMConfig) -> None:
        settings = config.encoder
        if isinstance(settings, SwinConfig):
            encoder, stride, width = (
                build_swin(settings),
                settings.stride,
                settings.width * 2 ** (len(settings.depths) - 1),
            )
        else:
            encoder, stride, width = build_beit(settings, _LAYER_SCALE), settings.patch_size, settings.width
        super().__init__(config, settings, encoder)
        self.mask_token = nn.Parameter(torch.empty(1, 1, settings.width))
        self.head = nn.Conv2d(width, stride * stride * 3, 1)
        self.shuffle = nn.PixelShuffle(stride)
        truncated_normal(self.mask_token)

    def draw_mask(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        unit = self.config.mask_size // self.patch_size
        return (unit_mask(self.grid, unit, self.config.mask_ratio, rng).reshape(-1),)

    def forward(self, images: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N P"]:
        """Every patch of images in [-1, 1], with [mask] in the place of the masked ones."""
        embedded = self.encoder.patch_embed(to_imagenet(images))
        if isinstance(self.encoder_config, SwinConfig):
            tokens = torch.where(mask.view(*embedded.shape[:3], 1), self.mask_token.to(embedded.dtype), embedded)
            for stage in self.encoder.layers:
                tokens = stage(tokens)
            grid = self.encoder.norm(tokens).permute(0, 3, 1, 2)
        else:
            tokens = torch.where(mask[..., None], self.mask_token.to(embedded.dtype), embedded)
            states = run_beit(self.encoder, tokens)[:, 1:]
            grid = states.transpose(1, 2).unflatten(2, self.grid)
        return patchify(self.shuffle(self.head(grid)), self.patch_size)

    def targets(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N P"]:
        return patchify(to_imagenet(images), self.patch_size)

    def shown(
        self,
        predictions: Float[Tensor, "B N P"],
        images: Float[Tensor, "B 3 H W"],  # noqa: ARG002 - pixels are predicted as they are
    ) -> Float[Tensor, "B 3 H W"]:
        return from_imagenet(unpatchify(predictions, self.grid)).clamp(-1, 1)

    @classmethod
    def _load(cls, folder: ModelFolder) -> "SimMIM":
        config = validate(SimMIMConfig, folder.config, str(folder))
        return load_model(lambda: cls(config), folder.path).eval()
