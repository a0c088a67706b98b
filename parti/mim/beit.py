"""BEiT (Bao et al., "BEiT: BERT Pre-Training of Image Transformers", arXiv 2106.08254).

Blocks of patches are masked, and the target of each is the code that an image tokenizer has for it: any of the
toolkit's, a dVAE as in the paper or another. The paper's own ablation finds a tokenizer trained on ImageNet alone as
good as DALL-E's.

Legend: B batch, N patches, M masked patches of the batch, K codes.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.mim.backbones import ViTConfig, build_beit, run_beit, truncated_normal
from parti.mim.masking import block_mask
from parti.mim.network import ClassNetwork
from parti.mim.targets import to_imagenet
from vqgan.config.schema import Config, validate
from vqgan.hub.model_folder import ModelFolder, ModelFolderError, load_model


class BEiTConfig(Config, fixed=("kind", "layer_scale"), may_change=("masked_patches", "smallest_block")):
    """The network and its masks. The defaults are the paper's base size."""

    kind: Literal["beit"] = "beit"
    """What a model folder holds."""
    encoder: ViTConfig = ViTConfig(drop_path=0.1)
    """The encoder, with relative positions that all blocks share."""
    layer_scale: float = Field(0.1, gt=0)
    """What each block's share in the residual stream starts with; 1e-5 for the large size."""
    masked_patches: int = Field(75, gt=0)
    """Most patches that are masked; an image has fewer where no further block fits. 75 of 196: 38%."""
    smallest_block: int = Field(16, gt=0)
    """Least area of a block in patches."""

    @model_validator(mode="after")
    def _check_blocks_fit(self) -> "BEiTConfig":
        count = self.encoder.grid[0] * self.encoder.grid[1]
        if not self.smallest_block <= self.masked_patches < count:
            raise ValueError(
                f"masked_patches {self.masked_patches} must be at least smallest_block {self.smallest_block} and "
                f"fewer than all {count} patches"
            )
        if self.smallest_block > (self.encoder.grid[0] - 1) ** 2 / 2:
            raise ValueError(
                f"smallest_block {self.smallest_block} hardly fits into {self.encoder.grid[0]}x{self.encoder.grid[1]} "
                "patches; lower it"
            )
        return self


class BEiT(ClassNetwork):
    """An encoder with a head of `classes` codes."""

    kinds = ("beit",)
    config: BEiTConfig

    def __init__(self, config: BEiTConfig, classes: int) -> None:
        super().__init__(config, config.encoder, build_beit(config.encoder, config.layer_scale))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.encoder.width))
        self.head = nn.Linear(config.encoder.width, classes)
        truncated_normal(self.mask_token)
        truncated_normal(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def untrained(self) -> "BEiT":
        return BEiT(self.config, self.head.out_features)

    def draw_mask(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        mask = block_mask(self.grid, self.config.masked_patches, rng, smallest=self.config.smallest_block)
        return (mask.reshape(-1),)

    def forward(self, images: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "M K"]:
        """Logits of the masked patches of images in [-1, 1], image by image, row by row."""
        embedded = self.encoder.patch_embed(to_imagenet(images))
        tokens = torch.where(mask[..., None], self.mask_token.to(embedded.dtype), embedded)
        logits: Tensor = self.head(run_beit(self.encoder, tokens)[:, 1:][mask])
        return logits

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        return self.config.model_dump(mode="json") | {"classes": self.head.out_features}, self

    @classmethod
    def _load(cls, folder: ModelFolder) -> "BEiT":
        values = dict(folder.config)
        classes = values.pop("classes", None)
        if not isinstance(classes, int) or classes < 1:
            raise ModelFolderError(f"{folder}: classes must be a number of codes, received {classes!r}")
        config = validate(BEiTConfig, values, str(folder))
        return load_model(lambda: cls(config, classes), folder.path).eval()
